"""`torch.nn.Dropout` whose draws cost less on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from longspan.ops.torch.dropout import dropout


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` in all that tools ask of it; draws by `longspan.ops.torch.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of any shape -> one like it."""
        if self.inplace:
            return super().forward(input)
        return dropout(input, self.p, training=self.training)
