from __future__ import annotations

import pytest

from lazyc.codegen.target import Target, available_targets, host_target


@pytest.fixture(params=available_targets())
def target(request: pytest.FixtureRequest) -> Target:
    """Each target that this machine can run."""
    return host_target(request.param)
