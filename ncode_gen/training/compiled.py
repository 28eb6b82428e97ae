"""A loss that is compiled after some steps."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[..., tuple[Tensor, Tensor]]


class CompiledLoss:
    """A loss that runs as it is for some calls, and compiled from then on.

    The first steps, and their errors, come at once; compiling takes its time later. No other thread compiles in the
    background: torch's autocast cache can wait for the interpreter's lock while the compiler holds that and waits for
    the cache. Where the compiler fails, one clear line says so and the loss goes on as it is.

    Args:
        loss: the loss.
        log: where one line about the compilation goes.
        plain_calls: calls before it is compiled.
        parameters: what the loss is differentiated by.
        graphs: whether the compiled code is recorded as CUDA graphs: where networks are small, starting their kernels
            one by one takes most of the time. A graph's gradients lie where its next run writes its own, so they must
            have been used by then.
    """

    def __init__(
        self,
        loss: Loss,
        log: Callable[[str], None],
        plain_calls: int,
        parameters: Sequence[Tensor],
        *,
        graphs: bool = False,
    ) -> None:
        self.loss, self.log, self.plain_calls = loss, log, plain_calls
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.mode = "reduce-overhead" if graphs else "default"
        self.calls = 0

    def skip(self, calls: int) -> None:
        """Count calls that an earlier process made."""
        self.calls = min(self.calls + calls, self.plain_calls)

    def __call__(self, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss and what is reported beside it."""
        if self.calls == self.plain_calls:
            start = time.perf_counter()
            try:
                compiled = torch.compile(self.loss, fullgraph=True, dynamic=False, mode=self.mode)
                # Not by backward(): what waits for gradients to gather them must not see these.
                trial = compiled(*arguments)[0]
                torch.autograd.grad(trial, self.parameters, allow_unused=True)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self.log(f"compilation failed ({type(error).__name__}: {reason[:120]}); training continues uncompiled")
            else:
                self.loss = compiled
                self.log(f"compiled the training step in {time.perf_counter() - start:.0f} s")
        self.calls += 1
        return self.loss(*arguments)
