"""Names of the public namespace."""

import tessera as ts


def test_letters_are_sizes():
    from tessera.dims import B, D
    assert str(ts.Tensor[B, D]) == str(ts.Tensor["B", "D"])


def test_spellings_of_other_libraries():
    assert ts.flash_attention is ts.attention


def test_listed_names_exist():
    missing = [n for n in dir(ts) if not n.startswith("_") and not hasattr(ts, n)]
    assert not missing
