"""What the one rank of test_nccl runs: every primitive over a NCCL group of itself."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tutti.backend.parallel.transport import DirectTransport

from tests.support.ranks import this_rank


def main() -> None:
    rank = this_rank()
    group = dist.new_group([0], backend="nccl")
    transport = DirectTransport("nccl")
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        sent = torch.arange(12, device="cuda").view(4, 3).to(dtype)
        received, gathered, spread = torch.empty_like(sent), sent.new_empty(1, 4, 3), sent.clone()
        transport.all_to_all(received, sent, [4], [4], group)
        transport.all_gather(gathered, sent, group)
        transport.broadcast(spread, 0, group)
        results = {"all_to_all": received, "all_gather": gathered[0], "broadcast": spread, "sent": sent}
        rank.tensors |= {f"{dtype} {name}": tensor.float() for name, tensor in results.items()}
    rank.finish()


if __name__ == "__main__":
    main()
