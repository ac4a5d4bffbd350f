"""Optimisers: update rules as pure functions, and objects that apply them; written with the public API alone."""

from .optimizer import SGD, Adam, AdamW, Optimizer
from .rules import Rule, adam, adamw, momentum, sgd

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "Rule", "adam", "adamw", "momentum", "sgd"]
