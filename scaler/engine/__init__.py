"""One optimizer step for a batch plan: plain torch, DDP, DeepSpeed ZeRO."""
