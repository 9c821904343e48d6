"""A corner to break, alone or with a real broker and a real database."""

import pytest

from tests.faults.corner import Corner, Zygote


@pytest.fixture
def make_corner(tmp_path, doubtful_model, free_port, monkeypatch):
    """Make a corner, with everything in it ended afterwards."""
    made = []

    def make_corner(**around):
        home = tmp_path / f"corner{len(made)}"
        key, token = home / "key", home / "token"
        monkeypatch.setenv("QCNODE_PROVIDER_API_KEY_FILE", str(key))
        monkeypatch.setenv("QCNODE_BILLING_TOKEN_FILE", str(token))
        zygote = Zygote()  # after the environment, which its nodes inherit
        around.setdefault("billing_url", f"sqlite:///{home / 'billing.db'}")
        corner = Corner(
            home=home, model=doubtful_model, zygote=zygote, free_port=free_port, **around
        )
        made.append(corner)
        corner.open()
        return corner

    yield make_corner
    for corner in made:
        corner.close()
        corner.zygote.close()


@pytest.fixture
def make_serviced_corner(make_corner, mosquitto, postgres):
    """Make a corner whose entries go through a broker into a PostgreSQL database."""

    def make_serviced_corner(**around):
        return make_corner(broker_port=mosquitto.port, billing_url=postgres(), **around)

    return make_serviced_corner
