"""A corner to break: the model it judges with is taught once."""

from datetime import UTC, datetime

import pytest

from qcmodels.train import TeachConfig, teach
from qcnode.cameras.virtual import write_dataset
from tests.faults.corner import Corner, Zygote


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of rendered parts that leaves a good share of them undecided."""
    folder = tmp_path_factory.mktemp("taught")
    write_dataset(folder / "data", seed=1, good=40, defects=3, progress=lambda *_: None)
    teach(
        folder / "data",
        folder / "model",
        # Asking about half of the parts is what puts the books under load.
        config=TeachConfig(pass_share=0.5),
        now=datetime(2026, 11, 22, tzinfo=UTC),
        progress=lambda *_: None,
    )
    return folder / "model"


@pytest.fixture
def make_corner(tmp_path, model, free_port, monkeypatch):
    """Make a corner, with everything in it ended afterwards."""
    made = []

    def make_corner(**around):
        home = tmp_path / f"corner{len(made)}"
        key, token = home / "key", home / "token"
        monkeypatch.setenv("QCNODE_PROVIDER_API_KEY_FILE", str(key))
        monkeypatch.setenv("QCNODE_BILLING_TOKEN_FILE", str(token))
        zygote = Zygote()  # after the environment, which its nodes inherit
        around.setdefault("billing_url", f"sqlite:///{home / 'billing.db'}")
        corner = Corner(home=home, model=model, zygote=zygote, free_port=free_port, **around)
        made.append(corner)
        corner.open()
        return corner

    yield make_corner
    for corner in made:
        corner.close()
        corner.zygote.close()
