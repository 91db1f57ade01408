from agentvision.seeds import seed_for


def test_seeds_are_stable_and_differ():
    assert seed_for(1, "a") == 1515775267073163690  # the same in every process
    assert len({seed_for(1, k) for k in range(1000)}) == 1000
