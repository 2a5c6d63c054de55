"""The open door: rules and layers from the user's code and from installed packages."""

import subprocess
import sys
import textwrap

import pytest
from torch import nn

from pfa_convert import UserError, convert
from pfa_convert.feedback.functional import linear
from pfa_convert.feedback.layers import LAYERS
from pfa_convert.registry import Registry
from pfa_convert.rules import RULES


def install(folder, name, group, value, code):
    """Write a package with an entry point into a folder, as pip would."""
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


def run(folder, code):
    lines = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)


def test_an_installed_package_brings_a_rule(tmp_path):
    rule = """
        from pfa_convert.rules.fixed import FeedbackAlignment
        from pfa_convert.rules import RULES
        @RULES.register("elsewhere")
        class Elsewhere(FeedbackAlignment):
            name = "elsewhere"
    """
    install(tmp_path, "other_rules", "pfa_convert.rules", "other_rules", rule)
    use = """
        from torch import nn
        from pfa_convert import convert
        print(convert(nn.Linear(2, 2), "elsewhere").conversion.counts())
    """
    assert run(tmp_path, use).stdout == "{'elsewhere': 1}\n"


def test_an_installed_package_brings_a_layer(tmp_path):
    layer = """
        from torch import nn
        from pfa_convert.feedback.functional import linear
        from pfa_convert.feedback.layers import LAYERS
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.kernel = nn.Parameter(nn.init.ones_(nn.Parameter(nn.Linear(2, 2).weight)))
            def forward(self, x):
                return 2 * nn.functional.linear(x, self.kernel)
        @LAYERS.register(Twice, weights=["kernel"])
        def twice(layer, kernel, x):
            return 2 * linear(x, kernel.value, feedback=kernel.feedback)
    """
    install(tmp_path, "other_layers", "pfa_convert.layers", "other_layers", layer)
    use = """
        from pfa_convert import convert
        import other_layers
        print([(s.kind, s.weight) for s in convert(other_layers.Twice(), "fa").conversion.sites])
    """
    assert run(tmp_path, use).stdout == "[('Twice', 'kernel')]\n"


def test_a_broken_package_is_one_warning_that_names_it(tmp_path):
    install(tmp_path, "broken_rules", "pfa_convert.rules", "broken_rules:Rule", "raise OSError('no licence')")
    done = run(tmp_path, "from pfa_convert.rules import RULES; print(len(list(RULES)), len(list(RULES)))")
    assert done.stdout == f"{len(list(RULES))} {len(list(RULES))}\n"
    (warning,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert "'broken_rules' of broken_rules" in warning and "OSError: no licence" in warning


def test_a_name_that_is_taken_is_a_mistake_and_the_same_definition_again_is_none():
    registry = Registry("thing", "pfa_convert.rules")
    registry.register("a")(int)
    registry.register("a")(int)
    with pytest.raises(UserError, match=r"thing 'a' is registered already, by builtins.int"):
        registry.register("a")(str)


def test_a_layer_that_is_taken_is_a_mistake():
    with pytest.raises(UserError, match="layer Linear is registered already"):
        LAYERS.register(nn.Linear)(lambda layer, weight, x: linear(x, weight.value))


def test_a_class_without_an_entry_has_that_of_the_nearest_class_it_inherits_from():
    class Mine(nn.Conv2d):
        pass

    class Other(nn.Module):
        pass

    assert LAYERS.nearest(Mine).kind is nn.Conv2d
    assert LAYERS.nearest(Other) is None
    assert convert(Mine(2, 3, 1), "fa").conversion.sites[0].kind == "Conv2d"
