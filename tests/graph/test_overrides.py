"""Overrides: which rule and options a site gets, and which mistakes are refused."""

import pytest
from torch import nn

from pfa_convert import UserError, convert

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten()))


@pytest.mark.parametrize(
    ("overrides", "rules"),
    [
        ([{"match": "2.*", "rule": "bp"}], ["pfa", "pfa", "bp"]),
        ([{"match": "re:[01]", "rule": "fa"}], ["fa", "fa", "pfa"]),
        ([{"type": "Conv2d", "kernel_size": 1, "rule": "usf"}], ["pfa", "usf", "usf"]),
        ([{"match": "1", "rule": "kp"}, {"match": "*", "rule": "bp"}], ["bp", "kp", "bp"]),
    ],
)
def test_the_first_override_that_matches_decides(overrides, rules):
    model = convert(NET, "pfa", overrides=overrides)
    assert [site.rule for site in model.conversion.sites] == rules


def test_an_overrides_options_are_laid_over_the_default_ones():
    model = convert(
        NET, options={"expansion": 4}, overrides=[{"match": "1", "options": {"feedback_density": 0.5}}]
    )
    options = model.conversion.sites[1].options
    assert (options["expansion"], options["feedback_density"]) == (4, 0.5)
    assert model.conversion.sites[0].options["feedback_density"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"match": "layer9", "rule": "bp"}, "matches no site"),
        ({"type": "Conv3d", "rule": "bp"}, "did you mean 'Conv2d'"),
        ({"match": "re:(", "rule": "bp"}, "not a regular expression"),
        ({"match": "0"}, "neither 'rule' nor 'options'"),
        ({"match": "0", "rul": "bp"}, "did you mean 'rule'"),
        ({"rule": "bp"}, "either 'match' or 'type'"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        convert(NET, overrides=[override])


def test_a_misspelt_attribute_in_an_override_is_named():
    with pytest.raises(UserError, match="did you mean 'kernel_size'"):
        convert(NET, overrides=[{"type": "Conv2d", "kernal_size": 1, "rule": "bp"}])


def test_an_unmatched_override_names_the_nearest_site():
    with pytest.raises(UserError, match=r"overrides\[1\].*'layerr1' matches no site; did you mean 'layer1'"):
        convert(
            nn.ModuleDict({"layer1": nn.Linear(2, 2), "head": nn.Linear(2, 2)}),
            overrides=[{"match": "head", "rule": "bp"}, {"match": "layerr1", "rule": "bp"}],
        )


def test_an_override_that_an_earlier_one_shadows_is_no_mistake():
    overrides = [{"match": "*", "rule": "bp"}, {"match": "0", "rule": "fa"}]
    assert convert(NET, overrides=overrides).conversion.counts() == {"bp": 3}
