"""Workload `chars`: a character transformer of two layers on the Python standard library's source code.

The text is the first 1,500,000 characters of well-known modules of the Python that runs it, so nothing is
downloaded; its last tenth is held out. Other Python versions have slightly different text: compare trials
within one version. The metric is the held-out loss in nats per character, on 200 windows.
"""

import functools
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from scaler.errors import BadInput
from scaler.workload import Reference, Target, Workload

CONTEXT = 64  # characters per window
VOCABULARY = 128  # ASCII
EVAL_EXAMPLES = 200
TEXT_CHARACTERS = 1_500_000
_WIDTH = 64
_HEADS = 4
_LAYERS = 2
# Modules that are one file in every supported Python, and together longer than TEXT_CHARACTERS.
_MODULES = (
    "argparse ast bdb codecs configparser contextlib dataclasses difflib dis enum fractions functools heapq "
    "inspect ipaddress optparse os pickle random shutil socket ssl statistics subprocess tarfile threading "
    "tokenize traceback typing uuid weakref"
)

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a LayerNorm and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [n, t, 64] to the same shape."""
        n, t, _ = x.shape
        heads = self.qkv(self.attention_norm(x)).view(n, t, 3, _HEADS, _WIDTH // _HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, _WIDTH))
        y: Tensor = x + self.mlp(x)
        return y


class CharTransformer(nn.Module):
    """Decoder-only transformer: 2 layers, 4 heads, width 64, learned positions; about 120,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, _WIDTH)
        self.positions = nn.Embedding(CONTEXT, _WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map characters, int64 [n, t] with t up to 64, to logits [n, t, 128]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(
            self.norm(self.blocks(self.characters(tokens) + self.positions(positions)))
        )
        return logits


def train_data() -> TensorDataset:
    """Give windows of the first nine tenths of the text: (characters, next characters), int64 [n, 64]."""
    return _split()[0]


def eval_data() -> TensorDataset:
    """Give 200 windows, evenly spaced over the last tenth of the text, in the same form."""
    return _split()[1]


def loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats per character."""
    tokens, targets = batch
    return F.cross_entropy(net(tokens).flatten(0, 1), targets.flatten())


def weight(batch: Batch) -> float:
    """Count the characters to predict, which `loss` is the mean over."""
    return float(batch[1].numel())


def optimizer(parameters: "torch.optim.optimizer.ParamsT", learning_rate: float) -> torch.optim.Optimizer:
    """Make AdamW."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)


@functools.lru_cache(maxsize=1)
def _split() -> tuple[TensorDataset, TensorDataset]:
    text = torch.tensor(list(_text()), dtype=torch.int64)
    border = len(text) * 9 // 10
    train, held_out = _windows(text[:border]), _windows(text[border:])
    spaced = torch.linspace(0, len(held_out[0]) - 1, EVAL_EXAMPLES).long()
    return TensorDataset(*train), TensorDataset(*(part[spaced] for part in held_out))


def _windows(text: Tensor) -> tuple[Tensor, Tensor]:
    """Cut text into windows that do not overlap, and the same windows one character on."""
    count = (len(text) - 1) // CONTEXT
    length = count * CONTEXT
    return text[:length].view(count, CONTEXT), text[1 : length + 1].view(count, CONTEXT)


def _text() -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [folder / f"{module}.py" for module in _MODULES.split()]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise BadInput(
            f"workload 'chars': {folder} has no {', '.join(absent)}",
            hint="use a Python that is installed with its source files",
        )
    text = b"\n".join(path.read_bytes() for path in paths).decode("utf-8", errors="replace")
    ascii_text = text.encode("ascii", errors="replace")  # "?" for everything outside ASCII
    return ascii_text[:TEXT_CHARACTERS]


workload = Workload(
    name="chars",
    model=CharTransformer,
    train_data=train_data,
    eval_data=eval_data,
    loss=loss,
    optimizer=optimizer,
    metric=loss,
    weight=weight,
    target=Target(1.8, "min", max_examples=200_000, evaluate_every=1_600),
    reference=Reference(global_batch=32, learning_rate=3e-3, warmup_examples=640),
)
