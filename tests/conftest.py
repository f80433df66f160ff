"""What all tests share: hypothesis without its clock (machines differ), and where the real files are, if they are."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("project")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def same_chance_for_every_test():
    torch.manual_seed(0)


@pytest.fixture
def kitti_sample():
    """Folder with some real KITTI Road files."""
    folder = SHARED / "data" / "kitti_road_sample"
    if not folder.is_dir():
        pytest.skip(f"needs real KITTI Road files in {folder}")
    return folder
