from riverrun.graphs.opening import stage_seed


def test_every_stage_draws_its_own_noise() -> None:
    assert stage_seed(7, 0) == 7
    seeds = {stage_seed(2**64 - 1, index) for index in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**64 for seed in seeds)
