"""The micro networks of the tests: objects come and go, as the tests of memory need it."""

import pytest
from micro import SCORE_BIAS, in_tiers, micro_model, micro_network, new_model, one_thread, presence  # noqa: F401


@pytest.mark.parametrize("network", in_tiers(("sam2.1", "efficienttam"), ("sam2.1",)))
def test_objects_come_and_go(network: str) -> None:
    with micro_network(network):
        assert 0.2 < presence(micro_model()) < 0.8


@pytest.mark.full
@pytest.mark.parametrize("shift", [-6, 6])
def test_control_another_bias_of_the_score_is_noticed(shift: float) -> None:
    model = new_model()
    model.get_parameter(SCORE_BIAS).data += shift
    assert not 0.2 < presence(model) < 0.8
