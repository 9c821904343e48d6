"""A billing server's books without the server, for tests that read and write them."""

from qcbridge.billing.engine import Database
from qcbridge.billing.keys import NodeKeys, Trust
from qcbridge.billing.reports import Reports
from qcbridge.billing.resolutions import Resolutions
from qcbridge.billing.store import BillingStore
from qcbridge.billing.witness import Witness
from tests.bridge.ledgers import NOW


class Books:
    """One billing database, with all that writes and reads it."""

    def __init__(self, url, *, now=lambda: NOW, store=BillingStore, trust=Trust.FIRST, key=None):
        witness = None if key is None else Witness(key)
        self.url = url
        self.trust = trust
        self.database = Database(url)
        self.store = store(self.database, now=now, trust=trust, witness=witness)
        self.reports = Reports(self.database)
        self.resolutions = Resolutions(self.database, now=now)
        self.nodes = NodeKeys(self.database, now=now)

    def open(self):
        """Bring the schema up to date."""
        self.database.migrate()
        return self

    def ingest(self, offer):
        """Take an offer and return its receipt."""
        return self.store.take(offer).receipt

    def close(self):
        self.database.close()
