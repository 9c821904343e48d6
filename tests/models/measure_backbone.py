"""A pretrained backbone beside the filter bank, on recorded parts; figures for docs/models.md.

python -m tests.models.measure_backbone WEIGHTS.npz [--data FOLDER] [--sets NAME ...]
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

from qcmodels.backbone import add_backbone, load_weights
from qcmodels.bank import FEATURES, IMAGE, SIZE, add_bank
from qcmodels.choose import FAMILIES
from qcmodels.data import open_dataset, read_sample
from qcmodels.evaluate import auroc
from qcmodels.families.contract import SCORE, TAUGHT, Features, FitConfig
from qcmodels.sources import join_parts
from qcnode.picture import seen_at
from qcnode.runtime.onnx import open_session
from tests.models.measure_teach import SETS


def main() -> None:
    """Print one JSON object a line: a set, a family, and the AUROC on each kind of features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    options = parser.parse_args()
    net = partial(add_backbone, weights=load_weights(options.weights))
    kinds = {"bank": [add_bank], "backbone": [net], "bank+backbone": [add_bank, net]}
    for name in options.sets:
        data = open_dataset((options.data / name).resolve())
        rows: dict[str, dict[str, float]] = {family: {} for family in FAMILIES}
        for kind, parts in kinds.items():
            describe = open_session(join_parts(parts).SerializeToString())
            known = {
                part: np.stack(
                    [
                        describe.run(
                            [FEATURES],
                            {IMAGE: seen_at(read_sample(sample, side=SIZE).pixels, SIZE)},
                        )[0][0]
                        for sample in getattr(data, part)
                    ]
                )
                for part in ("train_good", "train_defects", "test_good", "test_defects")
            }
            features = Features(good=known["train_good"], defects=known["train_defects"])
            for family, fit in FAMILIES.items():
                session = open_session(fit(features, FitConfig(seed=0)).SerializeToString())
                good, bad = (
                    np.array(
                        [
                            float(session.run([SCORE], {TAUGHT: one[np.newaxis]})[0])
                            for one in known[part]
                        ]
                    )
                    for part in ("test_good", "test_defects")
                )
                rows[family][kind] = round(auroc(good, bad), 4)
        for family, row in rows.items():
            print(json.dumps({"set": name, "family": family, **row}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
