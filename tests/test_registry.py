import pytest

from rescale_cli.errors import RescaleError, UsageError
from rescale_cli.registry import Registry


def shelf() -> Registry[object]:
    things: Registry[object] = Registry("data source")
    things.register("folder", splits=("train",))(len)
    things.register("fashion-mnist")(max)
    return things


def test_a_registered_function_is_returned_unchanged():
    things = shelf()
    assert things["folder"] is len
    assert things.entry("folder").facts["splits"] == ("train",)
    assert list(things) == ["fashion-mnist", "folder"]
    assert len(things) == 2
    assert "folder" in things
    assert "nothing" not in things


def test_an_unknown_name_is_an_error_that_lists_the_names_and_the_closest():
    with pytest.raises(UsageError) as caught:
        shelf()["Fashon-mnist"]
    assert "data source 'Fashon-mnist'" in caught.value.what
    assert "fashion-mnist, folder" in caught.value.saw
    assert caught.value.fix == "did you mean fashion-mnist?"


def test_an_unknown_name_without_a_close_match_lists_all_names():
    with pytest.raises(UsageError) as caught:
        shelf()["x" * 5000]
    assert "fashion-mnist, folder" in caught.value.fix
    assert len(caught.value.what) < 200


def test_registering_a_name_twice_is_refused():
    with pytest.raises(RescaleError, match="two things"):
        shelf().register("folder")(min)
