"""Reader of RLlib's recorded output. Compressed columns are unpickled, so trust the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.offline.json_reader import from_json_data
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, MultiAgentBatch, SampleBatch

from qwr_rllib.offline.episodes import Dataset, Episode, one_line


def rllib_dataset(path: Path) -> Dataset:
    """Returns the data set in a file, or in the files of a folder.

    Raises:
        ValueError: if the file is neither JSON nor Parquet, or the folder has no such files.
    """
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.json"), *path.glob("*.parquet")])
    if not files or not all(file.suffix in (".json", ".parquet") for file in files):
        raise ValueError(
            f"offline.dataset: {path} is neither a Minari data set nor RLlib's recorded output "
            "(.json or .parquet files)"
        )
    return Dataset(str(path), None, None, None, True, _episodes(path, files))


def _episodes(path: Path, files: list[Path]) -> Iterator[Episode]:
    """Yields episodes in the order of their first row; their fragments may be in any file."""
    rows: dict[Any, list[tuple]] = {}
    for file in files:
        for i, batch in enumerate(_batches(file)):
            for eps_id, row in _rows(f"data set {path}: {file.name}, batch {i}", batch):
                own = rows.setdefault(eps_id, [])
                own.append(row if row[0] is not None else (len(own), *row[1:]))
    for eps_id, own in rows.items():
        own.sort(key=lambda row: row[0])
        start = 0
        for i, (t, *_, terminated, truncated) in enumerate(own):
            following = own[i + 1][0] if i + 1 < len(own) else None
            if terminated or truncated or following != t + 1:
                part = own[start : i + 1]
                start = i + 1
                _, obs, next_obs, actions, rewards, mu, *_ = zip(*part, strict=True)
                last = [] if next_obs[-1] is None else [next_obs[-1]]
                yield Episode(
                    f"episode {eps_id} from step {part[0][0]}",
                    np.stack([*obs, *last]),
                    np.stack(actions),
                    np.array(rewards),
                    bool(terminated),
                    None if mu[0] is None else np.stack(mu),
                )


def _batches(file: Path) -> Iterator[SampleBatch]:
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet  # Ray's data library depends on it

            records = parquet.read_table(file).to_pylist()
        else:
            records = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        for record in records:
            batch = from_json_data({k: v for k, v in record.items() if v is not None}, None)
            if isinstance(batch, MultiAgentBatch):
                if list(batch.policy_batches) != [DEFAULT_POLICY_ID]:
                    raise ValueError(f"it is of the policies {', '.join(batch.policy_batches)}")
                batch = batch.policy_batches[DEFAULT_POLICY_ID]
            yield batch
    except Exception as error:
        raise ValueError(f"data set {file} cannot be read: {one_line(error)}") from error


def _rows(where: str, batch: SampleBatch) -> Iterator[tuple[Any, tuple]]:
    """Yields each row's episode and (t, obs, next obs, action, reward, mu, two flags)."""
    needed = (
        SampleBatch.OBS, SampleBatch.ACTIONS, SampleBatch.REWARDS,
        SampleBatch.TERMINATEDS, SampleBatch.EPS_ID,
    )  # fmt: skip
    if missing := [name for name in needed if name not in batch]:
        raise ValueError(f"{where} lacks the columns {', '.join(missing)}")
    count = len(batch[SampleBatch.REWARDS])

    def column(name: str) -> np.ndarray | list[None]:
        if name not in batch:
            return [None] * count
        values = np.asarray(batch[name])
        if len(values) != count:
            raise ValueError(f"{where} has {len(values)} values of {name} and {count} rewards")
        return values

    truncated = column(SampleBatch.TRUNCATEDS) if SampleBatch.TRUNCATEDS in batch else [0] * count
    yield from zip(
        (int(episode) for episode in np.asarray(batch[SampleBatch.EPS_ID])),
        zip(
            (None if t is None else int(t) for t in column(SampleBatch.T)),
            column(SampleBatch.OBS),
            column(SampleBatch.NEXT_OBS),
            column(SampleBatch.ACTIONS),
            column(SampleBatch.REWARDS),
            column(SampleBatch.ACTION_DIST_INPUTS),
            column(SampleBatch.TERMINATEDS),
            truncated,
            strict=True,
        ),
        strict=True,
    )
