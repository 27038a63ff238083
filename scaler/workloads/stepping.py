"""A network of another library whose forward pass is a whole training step."""

from typing import Any

from torch import Tensor, nn


class Stepping(nn.Module):
    """Maps a batch to its loss, so that DistributedDataParallel sees the step as one forward pass.

    The keys of its state are those of the network alone: the user's own checkpoints load.
    """

    net: Any

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> Tensor:
        """Compute the mean loss of a batch."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> "Stepping":
        """Move the network, which may keep track of its device."""
        self.net.to(*args, **kwargs)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Give the network's state."""
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Give the network a state."""
        return self.net.load_state_dict(*args, **kwargs)


def loss(net: Stepping, batch: Any) -> Tensor:
    """Compute the mean loss of a batch."""
    found: Tensor = net(batch)
    return found
