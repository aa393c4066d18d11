"""What several folders of tests share."""

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray for every service that a test starts in this process: each has its own controller and actors on it."""
    from riverrun.actors.serve import LOCAL, ray_of  # most tests need neither Ray nor its seconds

    with ray_of(LOCAL):
        yield
