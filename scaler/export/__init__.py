"""The answer in the form of the tool that trains with it: one module per tool, all from one BatchPlan."""
