"""Small sound sources of every form, by name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.fuzz.audio_kinds import AUDIO, HZ
from tests.fuzz.mutations import Files
from tests.fuzz.reader import Pack, Reader, lines, plain
from tests.stages.audio_files import encoded, tone


def tar_of(files: Files, names: list[str] | None = None) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names or files:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return data.getvalue()


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data, **{"row_group_size": 2, **options})
    return data.getvalue()


def clips() -> dict[str, bytes]:
    return {f"{n}.wav": encoded(tone(0.1, HZ, 200.0 + n), HZ) for n in range(4)}


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {"audio_filepath": f"{number}.wav", "text": f"文{number}", "speaker": "a", **more}


NAMES = {"speaker": "speaker", "ovrl": "ovrl", "end_seconds": "end", "channel": "channel"}
MORE: list[dict[str, Any]] = [
    {}, {"offset": 0.01, "duration": 0.05, "ovrl": 3.0}, {"offset": 0, "end": 0.05, "channel": 0}, {"x": [{"y": None}]},
]  # fmt: skip


def manifest() -> Files:
    return {"m.jsonl": lines(*(entry(n, **more) for n, more in enumerate(MORE)))}


def table(delimiter: str, name: str) -> Reader:
    rows = [["file_name", "text", "speaker"], *([f"{n}.wav", f"文 {n}", "a"] for n in range(4))]
    if delimiter in ",;":
        rows[2][1] = '"二行目\nつづき ""はい"""'
    text = "\n".join(delimiter.join(row) for row in rows).encode()
    settings = {"kind": "folder", "paths": [name], "fields": {"speaker": "speaker"}}
    return Reader(lambda: {name: text}, settings, beside=clips)


def layout(name: str, text: str) -> Reader:
    settings = {"kind": "folder", "paths": ["t.list"], "layout": name}
    return Reader(lambda: {"t.list": text.encode()}, settings, beside=clips)


def members() -> Files:
    audio = clips()
    made: dict[str, bytes] = {}
    for number in range(3):
        made[f"d/{number}.json"] = json.dumps({"text": f"文{number}", "id": number}).encode()
        made[f"d/{number}.wav"] = audio[f"{number}.wav"]
    return {**made, "d/x.1.txt": "文".encode(), "d/x.1.wav": audio["3.wav"]}


def one_tar(files: Files) -> dict[str, bytes]:
    return {"a.tar": tar_of(files)}


def transcribed(files: Files) -> dict[str, bytes]:
    audio = {name: data for name, data in files.items() if name.endswith(".wav")}
    return {"t.tsv": files["t.tsv"], "a.tar": tar_of(audio)}


def transcripts() -> Files:
    rows = "".join(f"{n}.wav\t文{n}\n" for n in range(4))
    return {"t.tsv": f"file_name\ttext\n{rows}".encode(), **clips()}


def audio_table(form: str) -> Callable[[], Files]:
    def make() -> Files:
        audio = list(clips().values())
        cells: dict[str, Any] = {
            "bytes": audio,
            "path": [f"{n}.wav" for n in range(4)],
            "struct": [{"bytes": audio[0], "path": "0.wav"}, {"bytes": None, "path": "1.wav"}, None, {"bytes": audio[3], "path": None}],
            "array": [{"array": (tone(0.05, HZ) / 2).tolist(), "sampling_rate": HZ, "path": None}] * 4,
        }  # fmt: skip
        columns = {"audio": cells[form], "text": [f"文{n}" for n in range(4)], "meta": [{"n": n, "d": 1.5} for n in range(4)]}  # fmt: skip
        return {"t.parquet": parquet_of(pa.table(columns), write_page_checksum=form == "bytes")}

    return make


def parquet(form: str, **fields: str) -> Reader:
    settings = {
        "kind": "parquet",
        "paths": ["t.parquet"],
        "fields": {"speaker": "meta.n", **fields},
    }
    return Reader(audio_table(form), settings, beside=clips)


def cut(number: int, kind: str, source: str) -> dict[str, Any]:
    place = {"start": 0, "duration": 0.1, "channel": 0}
    part = {
        "id": f"s{number}",
        "recording_id": f"r{number}",
        **place,
        "text": f"文{number}",
        "speaker": "a",
    }
    more = {"sampling_rate": HZ, "num_samples": 800, "duration": 0.1, "channel_ids": [0]}
    recording = {
        "id": f"r{number}",
        "sources": [{"type": kind, "channels": [0], "source": source}],
        **more,
    }
    return {
        "id": f"c{number}",
        **place,
        "supervisions": [part],
        "recording": recording,
        "type": "MonoCut",
    }


def shar() -> Files:
    named = {f"c{n}.wav": data for n, data in enumerate(clips().values())}
    cuts = [cut(n, "shar", "") for n in range(3)]
    bare = {key: value for key, value in cut(3, "shar", "").items() if key != "recording"}
    recording = json.dumps(cut(3, "memory", "")["recording"]).encode()
    return {"cuts.0.jsonl": lines(*cuts, bare), **named, "c3.json": recording}


def in_shar(files: Files) -> dict[str, bytes]:
    rest = {name: data for name, data in files.items() if name != "cuts.0.jsonl"}
    return {"cuts.0.jsonl": files["cuts.0.jsonl"], "recording.0.tar": tar_of(rest)}


def cut_list() -> Files:
    return {"list.jsonl": lines(*(cut(n, "file", f"{n}.wav") for n in range(4)))}


def supervisions() -> Files:
    cuts = [cut(n, "file", f"{n}.wav") for n in range(4)]
    return {
        "x_supervisions_y.jsonl": lines(*(c["supervisions"][0] for c in cuts)),
        "x_recordings_y.jsonl": lines(*(c["recording"] for c in cuts)),
    }


def nemo() -> Files:
    return {"manifest_0.json": lines(*(entry(n, shard_id=0) for n in range(4))), **clips()}


def in_nemo(files: Files) -> dict[str, bytes]:
    rest = {name: data for name, data in files.items() if name != "manifest_0.json"}
    return {"manifest_0.json": files["manifest_0.json"], "audio_0.tar": tar_of(rest)}


def compressed(suffix: str, pack: Pack = plain) -> Pack:
    compress = gzip.compress if suffix == ".gz" else zstandard.compress

    def packed(files: Files) -> dict[str, bytes]:
        made = {}
        for name, data in pack(files).items():
            middle = len(data) // 2  # two members, or frames
            made[f"{name}{suffix}"] = compress(data[:middle]) + compress(data[middle:])
        return made

    return packed


SPEECH = {
    "manifest": Reader(manifest, {"kind": "manifest", "paths": ["m.jsonl"], "fields": NAMES}, beside=clips),
    "manifest_gz": Reader(manifest, {"kind": "manifest", "paths": ["m.jsonl.gz"]}, pack=compressed(".gz"), beside=clips),
    "manifest_zst": Reader(manifest, {"kind": "manifest", "paths": ["m.jsonl.zst"]}, pack=compressed(".zst"), beside=clips),
    "csv": table(",", "metadata.csv"),
    "tsv": table("\t", "metadata.tsv"),
    "vits_speaker": layout("vits_speaker", "0.wav|a|文\n1.wav|b|文\n2.wav|c|文\n"),
    "kaldi_list": layout("list", "0.wav 文 文\n1.wav\t文\n2.wav 文\n"),
    "webdataset": Reader(members, {"kind": "webdataset", "paths": ["a.tar"], "fields": {"id": "id"}}, pack=one_tar),
    "webdataset_gz": Reader(members, {"kind": "webdataset", "paths": ["a.tar.gz"]}, pack=compressed(".gz", one_tar)),
    "webdataset_zst": Reader(members, {"kind": "webdataset", "paths": ["a.tar.zst"]}, pack=compressed(".zst", one_tar)),
    "transcribed": Reader(transcripts, {"kind": "webdataset", "paths": ["a.tar"], "transcripts": "t.tsv"}, pack=transcribed),
    "parquet_bytes": parquet("bytes"),
    "parquet_path": parquet("path"),
    "parquet_struct": parquet("struct", ovrl="meta.d"),
    "parquet_array": parquet("array"),
    "shar": Reader(shar, {"kind": "shar", "paths": ["cuts.0.jsonl"]}, pack=in_shar),
    "cuts": Reader(cut_list, {"kind": "shar", "paths": ["list.jsonl"]}, beside=clips),
    "supervisions": Reader(supervisions, {"kind": "shar", "paths": ["x_supervisions_y.jsonl"]}, beside=clips),
    "nemo_tarred": Reader(nemo, {"kind": "nemo_tarred", "paths": ["manifest_0.json"]}, pack=in_nemo),
}  # fmt: skip

# --- sources of text --------------------------------------------------------------------------------

PAIR = {"instruction": "問い", "input": "1 + 1", "output": "答え <|eot_id|>", "id": 7}
CHAT = {
    "messages": [
        {"role": "system", "content": "丁寧に。"},
        {"role": "user", "content": [{"type": "text", "text": "はい"}]},
        {"role": "assistant", "content": "いいえ"},
    ],
    "history": [["a", "b"]],
    "tools": [],
}


def instruction_table(record: Mapping[str, Any]) -> Callable[[], Files]:
    return lambda: {"t.parquet": parquet_of(pa.table({k: [v] * 4 for k, v in record.items()}))}


def array() -> Files:
    return {"a.json": json.dumps([PAIR] * 4, ensure_ascii=False, indent=1).encode()}


TEXT = {
    "jsonl": Reader(lambda: {"a.jsonl": lines(*[PAIR] * 4)}, {"kind": "jsonl", "paths": ["a.jsonl"]}, True),
    "chat": Reader(lambda: {"a.jsonl": lines(*[CHAT] * 4)}, {"kind": "jsonl", "paths": ["a.jsonl"], "layout": "messages"}, True),
    "json": Reader(array, {"kind": "json", "paths": ["a.json"]}, True),
    "json_gz": Reader(array, {"kind": "json", "paths": ["a.json.gz"]}, True, pack=compressed(".gz")),
    "json_zst": Reader(array, {"kind": "json", "paths": ["a.json.zst"]}, True, pack=compressed(".zst")),
    "parquet_text": Reader(instruction_table(PAIR), {"kind": "parquet", "paths": ["t.parquet"]}, True),
    "parquet_chat": Reader(
        instruction_table({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        {"kind": "parquet", "paths": ["t.parquet"], "layout": "messages"}, True,
    ),
}  # fmt: skip

READERS: dict[str, Reader] = {**AUDIO, **SPEECH, **TEXT}
