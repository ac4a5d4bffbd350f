"""Optimisers: update rules as pure functions, and objects that apply them; written with the public API alone."""

from tessera.errors.boundary import guard_names, guarded

from .optimizer import SGD, Adam, AdamW, Optimizer
from .rules import Rule, adam, adamw, momentum, sgd

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "Rule", "adam", "adamw", "momentum", "sgd"]

guard_names(globals(), __all__, "optim.")
for _class, _names in ((Optimizer, ("__init__", "step", "follow", "load_state_dict")), (Rule, ("init", "update")),
                       *((c, ("__init__",)) for c in (SGD, Adam, AdamW))):
    for _name in _names:
        setattr(_class, _name, guarded(getattr(_class, _name), _class.__name__ if _name == "__init__" else _name))
