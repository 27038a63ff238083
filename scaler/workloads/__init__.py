"""Built-in workloads, each a module with a `workload`: digits, mnist, chars, gpt2, resnet50."""
