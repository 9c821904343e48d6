"""How many ledger entries a second the billing store takes, on this machine.

    python -m tests.bridge.measure_billing [URL ...] [--entries N] [--batch N] [--runs N]

Without a URL it measures SQLite in a temporary folder, with every commit on the disk.
Counted is what a server does for a batch: decode, verify, store, commit.
"""

import argparse
import statistics
import tempfile
import time
import uuid

from qcbridge.billing.intake import Intake
from qcbridge.billing.store import BillingStore
from tests.bridge.ledgers import NOW, attempts, raw_batch, write


def main():
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("urls", nargs="*")
    asked.add_argument("--entries", type=int, default=10_000)
    asked.add_argument("--batch", type=int, default=500)
    asked.add_argument("--runs", type=int, default=5)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for url in options.urls or [f"sqlite:///{folder}/billing.db"]:
            rates = [_rate(url, options.entries, options.batch) for _ in range(options.runs)]
            print(  # noqa: T201  # a script that prints is what this is
                f"{url.partition(':')[0]}: batches of {options.batch}, entries/s"
                f" min {min(rates):.0f} median {statistics.median(rates):.0f} max {max(rates):.0f}"
            )


def _rate(url, count, step):
    epoch = uuid.uuid4().hex
    entries = write(attempts(count), epoch=epoch)[:count]
    batches = [raw_batch(entries[start : start + step]) for start in range(0, count, step)]
    store = BillingStore(url, now=lambda: NOW)
    store.migrate()
    intake = Intake(store)
    began = time.perf_counter()
    for raw in batches:
        receipt = intake.take(raw, via="measure")
    took = time.perf_counter() - began
    store.close()
    if (receipt.acked_seq, receipt.head_hash) != (count, entries[-1].hash.hex()):
        raise SystemExit(f"the store is wrong: {receipt}")
    return count / took


if __name__ == "__main__":
    main()
