"A store of zeros of any size: to measure what a corpus takes that nobody has."

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiotag.core.files import file_sha256, write_json
from audiotag.data.store import COLUMNS, FeatureStore, StoreSettings


def sparse_store(
    folder,  # the store; made
    *,
    clips: int,  # number of clips
    frames: int = 500,  # of each clip
    front_end,  # determines the number of bands
    per_shard: int = 512,  # clips
) -> FeatureStore:
    "A store whose clips are all zeros and take no disk space, to measure how much a machine can stream."
    folder, bands = Path(folder), front_end.n_bands
    shards = [f"{i:06d}-{0:016x}" for i in range(-(-clips // per_shard))]
    (folder / "shards").mkdir(parents=True)
    write_json(folder / "audiotag.json", {"kind": "store", "format": 1})
    for i, name in enumerate(shards):
        rows = min(per_shard, clips - i * per_shard) * frames
        with open(folder / "shards" / f"{name}.npy", "wb") as f:
            np.lib.format.write_array_header_1_0(f, dict(descr="<f2", fortran_order=False, shape=(rows, bands)))
            f.truncate(f.tell() + rows * bands * 2)
    settings = StoreSettings(front_end=front_end)
    schema = pa.schema(
        [(k, {str: pa.string(), int: pa.int64(), float: pa.float64()}[t]) for k, t in COLUMNS.items()],
        {"audiotag": json.dumps(settings.to_dict())},
    )
    with pq.ParquetWriter(folder / "index.parquet", schema) as out:
        for at in range(0, clips, 65_000):
            out.write_table(
                _sparse_rows(np.arange(at, min(at + 65_000, clips)), shards, frames, bands, per_shard, schema)
            )
    write_json(folder / "store.json", settings.to_dict())
    (folder / "index.sha256").write_text(f"{file_sha256(folder / 'index.parquet')}  index.parquet\n")
    return FeatureStore(folder)


def _sparse_rows(i, shards, frames, bands, per_shard, schema):
    same = dict(
        frames=frames,
        channels=1,
        bands=bands,
        scale=1.0,
        zero=0.0,
        checksum=hashlib.sha256(bytes(2 * frames * bands)).hexdigest()[:16],
    )
    columns = {
        "clip_id": [f"clip-{o:09d}" for o in i],
        "shard": [shards[o // per_shard] for o in i],
        "offset": i % per_shard * frames,
    }
    return pa.table(
        [pa.array(columns[n] if n in columns else [same.get(n)] * len(i), schema.field(n).type) for n in schema.names],
        schema=schema,
    )
