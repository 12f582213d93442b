import pytest

from fxsurgery.analysis.naming import node_named, stem_of
from fxsurgery.errors import SpecError
from programs import program


def test_a_path_of_a_module_is_told_from_the_name_of_its_node():
    start = program("Plain")
    assert node_named(start, "body_0", list, "").target == "body.0"
    wanted = r"no node is named 'body.0' \(the module body.0 is called by %body_0\); choose one of the x: a, b"
    with pytest.raises(SpecError, match=wanted):
        node_named(start, "body.0", lambda: ["a", "b"], "x")
    with pytest.raises(SpecError, match="no node is named 'output'; choose one of the maps: none"):
        node_named(start, "output", list, "maps")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cell1.relu", "cell1.relu"),
        ("cell1.relu_cell_act", "cell1.relu"),
        ("cell1.relu_cell_act_12", "cell1.relu"),
        ("relu_deeper_norm_2_deeper_act_cell_pool", "relu"),
        ("stem_cell_block", "stem_cell_block"),
        ("_deeper", "_deeper"),
    ],
)
def test_what_passes_have_added_to_a_name_is_not_added_to(name: str, wanted: str):
    assert stem_of(name) == wanted
