"""What a daemon inherits from whoever starts it."""

from __future__ import annotations

from tutti.backend.client.launch import DEVICE_VARIABLES, clean_environment

COMFYUIS = {"CUDA_VISIBLE_DEVICES": "3", "PYTHONPATH": "/comfyui", "RANK": "0", "PATH": "/bin"}


def test_what_belongs_to_comfyuis_process_is_left_out() -> None:
    assert clean_environment(COMFYUIS) == {"PATH": "/bin"}


def test_a_daemon_of_the_demo_sees_the_devices_that_its_user_chose() -> None:
    assert clean_environment(COMFYUIS, DEVICE_VARIABLES) == {"CUDA_VISIBLE_DEVICES": "3", "PATH": "/bin"}
