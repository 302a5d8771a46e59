"""The table of attacks: every attack that a test declares has its row, and what got through is none."""

import pytest

from tests.security import attacks

pytest_plugins = ["pytester"]


def test_every_attack_has_its_row_and_none_got_through() -> None:
    rows = attacks.written(attacks.TABLE.read_text())
    assert set(rows) == attacks.declared(), "run: python -m tests.security.attacks"
    assert all(row.tries and not row.through for row in rows.values())


def test_tries_are_counted_and_those_that_got_through(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\nfrom tests.security import attacks\n"
        "def pytest_collection_modifyitems(items): attacks.mark(items)\n"
        "@pytest.fixture\ndef attempt(request): return attacks.Attempts(request.node)\n"
    )
    pytester.makepyfile(
        test_some="""
        import pytest
        @pytest.mark.attack("doors")
        def test_doors(attempt):
            for _ in range(3):
                attempt(True)
        @pytest.mark.attack("doors")
        def test_another(): pass
        @pytest.mark.attack("windows")
        def test_windows(attempt):
            attempt(True)
            attempt(False, "the left one")
        @pytest.mark.attack("walls")
        def test_walls(): raise RuntimeError
        @pytest.mark.attack("roofs")
        def test_roofs(): pytest.skip("none here")
        def test_nothing(): pass
        """
    )
    count = attacks.Count()
    pytester.inline_run("-q", "-p", "no:cacheprovider", plugins=[count])
    found = {attack: (row.tries, row.through) for (file, attack), row in count.rows.items()}
    assert found == {"doors": (4, 0), "windows": (2, 1), "walls": (1, 1)}
    assert [node.partition("::")[2] for node in count.missing] == ["test_roofs"]
    text = attacks.filled(attacks.TABLE.read_text(), count.rows)
    assert attacks.written(text) == count.rows and "| **all** | **7** | **2** | |" in text
