"""Workload `gpt2`: GPT-2 small, 124,439,808 parameters with random weights, on generated token sequences.

It is there for memory and throughput: the sizes are those of Radford et al., Language Models are Unsupervised
Multitask Learners (2019), the settings of AdamW those of Brown et al., Language Models are Few-Shot Learners
(2020). Convergence on it means little, since the text is a random walk: each of 512 states is followed by one
of four, all equally likely. The loss is at best log 4 = 1.39 nats per token, and log 512 = 6.24 for a model
that knows which tokens occur but not their order. Nothing is downloaded; sequences are made when asked for.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from scaler.workload import Reference, Target, Workload

CONTEXT = 1_024  # tokens per sequence
VOCABULARY = 50_257
TRAIN_EXAMPLES = 20_000
EVAL_EXAMPLES = 64
STATES = 512
STEPS = (1, 71, 201, 389)  # from a state to its successors, on the ring of states
_SPACING = VOCABULARY // STATES  # the states' tokens are spread over the vocabulary
_DROPOUT = 0.1

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [n, t, width] to the same shape."""
        n, t, width = x.shape
        heads = self.qkv(self.attention_norm(x)).view(n, t, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = _DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + self.dropout(self.attention_out(mixed.transpose(1, 2).reshape(n, t, width)))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")
        y: Tensor = x + self.dropout(self.mlp_out(hidden))
        return y


class GPT2(nn.Module):
    """Decoder-only transformer with learned positions; the output layer is the token embedding."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.dropout = nn.Dropout(_DROPOUT)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                # Each residual connection adds its own variance.
                shrink = math.sqrt(2 * layers) if "_out" in name else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 [n, t] with t up to 1,024, to logits [n, t, 50257]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(positions))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class RandomWalks(Dataset[Batch]):
    """Sequences made from a seed each: (tokens, next tokens), int64 [1024]."""

    def __init__(self, examples: int, first_seed: int) -> None:
        self.examples = examples
        self.first_seed = first_seed

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.examples:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.first_seed + index)
        walk = torch.tensor(STEPS)[torch.randint(len(STEPS), (CONTEXT + 1,), generator=generator)]
        walk[0] = torch.randint(STATES, (), generator=generator)
        tokens = walk.cumsum(0) % STATES * _SPACING
        return tokens[:-1], tokens[1:]


def train_data() -> RandomWalks:
    """Give 20,000 sequences."""
    return RandomWalks(TRAIN_EXAMPLES, first_seed=0)


def eval_data() -> RandomWalks:
    """Give 64 other sequences."""
    return RandomWalks(EVAL_EXAMPLES, first_seed=TRAIN_EXAMPLES)


def loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats per token."""
    tokens, targets = batch
    return F.cross_entropy(net(tokens).flatten(0, 1), targets.flatten())


def weight(batch: Batch) -> float:
    """Count the tokens to predict, which `loss` is the mean over."""
    return float(batch[1].numel())


def worst_case(micro_batch: int) -> Batch:
    """Give as many sequences of the full length; what they say does not change the memory."""
    tokens = torch.arange(micro_batch * (CONTEXT + 1)).view(micro_batch, CONTEXT + 1) % VOCABULARY
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def optimizer(parameters: "torch.optim.optimizer.ParamsT", learning_rate: float) -> torch.optim.Optimizer:
    """Make AdamW."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)


workload = Workload(
    name="gpt2",
    model=GPT2,
    train_data=train_data,
    eval_data=eval_data,
    loss=loss,
    optimizer=optimizer,
    metric=loss,
    weight=weight,
    worst_case=worst_case,
    precision="bf16",
    target=Target(2.0, "min", max_examples=2 * TRAIN_EXAMPLES, evaluate_every=400),
    reference=Reference(global_batch=16, learning_rate=6e-4, warmup_examples=320),
)
