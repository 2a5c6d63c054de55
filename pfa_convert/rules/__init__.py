"""The rules, one file per family. A new rule is a new file here that registers itself."""

from pfa_convert.rules.base import RULES, Rule, make_rule

__all__ = ["RULES", "Rule", "make_rule"]
