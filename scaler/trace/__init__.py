"""Device memory without a GPU: fake tensors, CUDA semantics, the allocator's arithmetic, an itemised bill."""
