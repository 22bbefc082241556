"""What ``tutti serve`` is asked for, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutti.backend.cli.listening import Address, parse, split
from tutti.backend.cli.main import CommandError
from tutti.backend.cli.settings import check_models, check_plan, choose_device, choose_ranks, choose_transport
from tutti.backend.errors import BadPlan
from tutti.backend.planning.devices import Gpu, choose

TWO = (Gpu(0, "GPU-aaaa-1", "A", 24000, "550"), Gpu(1, "GPU-bbbb-2", "B", 24000, "550"))


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [(None, (), "cpu"), (None, TWO, "cuda"), ("cpu", TWO, "cpu"), ("cuda", TWO, "cuda")],
)
def test_a_gpu_is_used_where_there_is_one(asked: str | None, gpus: tuple[Gpu, ...], device: str) -> None:
    assert choose_device(asked, gpus) == device


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(CommandError, match=r"^Use `--device cpu`"):
        choose_device("cuda", ())


@pytest.mark.parametrize(
    ("asked", "device", "ranks", "transport"),
    [
        (None, "cuda", 2, ""),
        (4, "cuda", 4, "gloo-host-staged"),
        (None, "cpu", 2, ""),
        (4, "cpu", 4, ""),
        (1, "cuda", 1, ""),
    ],
)
def test_ranks_follow_the_gpus_and_share_them_over_host_memory(
    asked: int | None, device: str, ranks: int, transport: str
) -> None:
    assert choose_ranks(asked, device, TWO) == ranks
    assert choose_transport(device, ranks, TWO) == transport


def test_no_ranks_at_all_is_refused() -> None:
    with pytest.raises(CommandError, match="at least one rank"):
        choose_ranks(0, "cpu", ())


def test_a_plan_that_fits_is_written_out_in_full_and_auto_stays() -> None:
    assert check_plan("ulysses=2", 2) == "cfg=1,ring=1,ulysses=2"
    assert check_plan("auto", 7) == "auto"


@pytest.mark.parametrize("text", ["compression=balanced", "auto,compression=balanced"])
def test_a_daemon_may_be_started_with_a_compression_and_choose_the_degrees(text: str) -> None:
    assert check_plan(text, 2) == "auto,compression=balanced"
    assert check_plan("auto,compression=off", 2) == "auto"
    assert check_plan("ulysses=2,compression=fast", 2) == "cfg=1,ring=1,ulysses=2,compression=fast"
    with pytest.raises(BadPlan, match="no exchange to compress"):
        check_plan("ulysses=1,compression=fast", 1)
    with pytest.raises(BadPlan):
        check_plan("", 2)


def test_a_plan_for_another_number_of_ranks_names_what_fits() -> None:
    with pytest.raises(
        CommandError,
        match=r"^Use `--ranks 4`, or a plan for 2 \(auto; cfg=1,ring=1,ulysses=2; cfg=1,ring=2,ulysses=1; cfg=2,ring=1,ulysses=1\)",
    ):
        check_plan("ulysses=2,ring=2", 2)


def test_what_is_no_plan_is_refused_as_such() -> None:
    with pytest.raises(BadPlan):
        check_plan("fast", 2)


def test_a_plan_with_cfg_parallel_is_taken_where_there_are_two_halves() -> None:
    assert check_plan("cfg=2", 2) == "cfg=2,ring=1,ulysses=1"
    with pytest.raises(CommandError, match=r"^Use a plan with cfg=1 or cfg=2"):
        check_plan("cfg=4", 4)


def test_models_folders_are_like_comfyuis(tmp_path: Path) -> None:
    (tmp_path / "diffusion_models").mkdir()
    assert check_models([tmp_path]) == (tmp_path,)


def test_a_folder_that_is_not_there_or_is_another_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"^Give a folder that exists"):
        check_models([tmp_path / "none"])
    with pytest.raises(CommandError, match=r"^Give a `models` folder of ComfyUI"):
        check_models([tmp_path])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 0), ("127.0.0.1:7788", "127.0.0.1", 7788), ("tcp://10.0.0.5:80", "10.0.0.5", 80),
        ("[::1]:7788", "::1", 7788), ("[::1]", "::1", 0), ("0.0.0.0:1", "0.0.0.0", 1),
    ],
)  # fmt: skip
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert split(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":80", "a:b", "1.2.3.4:99999", "http://x:80", "1.2.3.4:80:80", "::1", "1.2.3.4:", "x y:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match=r"^Write the address as HOST:PORT"):
        split(text)


def test_a_name_is_looked_up_and_one_that_nobody_knows_is_refused() -> None:
    assert parse("localhost:80").is_loopback
    with pytest.raises(CommandError, match="cannot be looked up"):
        parse("no-such-host.invalid:80")


def test_loopback_is_told_from_the_rest() -> None:
    assert [Address(host, 1).is_loopback for host in ("127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "192.168.1.1", "::")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_endpoints_are_written_as_libzmq_wants_them() -> None:
    assert Address("127.0.0.1", 0).endpoint == "tcp://127.0.0.1:*"
    assert Address("::1", 5).endpoint == "tcp://[::1]:5"


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, [0, 1]), ("", []), ("1", [1]), ("1,0", [1, 0]), ("0,7,1", [0]), ("GPU-bbbb", [1]), ("0,0", [0]), ("-1", []), ("x", []),
        ("MIG-abc", [-1]),
    ],
)  # fmt: skip
def test_visible_devices_follow_cudas_rule(visible: str | None, chosen: list[int]) -> None:
    assert [gpu.index for gpu in choose(TWO, visible)] == chosen
