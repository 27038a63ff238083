"""Callbacks for the training loops of other libraries, which need not be installed."""
