"""Commands that look at what a run left: `koe stats, inspect, verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    err,
    numbers,
    opened,
    out,
    print_json,
)
from pipeline.config import PipelineConfig
from pipeline.config_file import load_config
from pipeline.schema import TEXT

if TYPE_CHECKING:
    from pipeline.inspection import Document


def stats(
    config: ConfigOption = DEFAULT_CONFIG,
    what_if: Annotated[
        str, typer.Option("--what-if", help="Thresholds of ovrl: clips and hours above each.")
    ] = "2.0,2.5,3.0,3.5",
    source: Annotated[
        str | None,
        typer.Option(help="Show this source only; --json and --html tell of all."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with charts and sound here.")
    ] = None,
    html_clips: Annotated[
        int,
        typer.Option(
            min=0,
            help="Best, worst and borderline clips on the page, of each; half as many outliers.",
        ),
    ] = 6,
) -> None:
    """Show where every clip went, and what clips and shards are like."""
    from pipeline.progress import counting
    from pipeline.stats import full_stats
    from pipeline.stats_view import require_source, stats_view

    thresholds = numbers("--what-if", what_if)
    settings = load_config(config, overrides)
    plan, ledger = opened(settings)
    if source is not None:
        require_source(plan.modalities, source)
    with counting(err, "reading units") as report:
        found = full_stats(plan, ledger, thresholds, report)
    if html is not None:
        from pipeline.report import write_data_report

        with counting(err, "decoding clips") as report:
            page = write_data_report(settings, plan, ledger, found, html, html_clips, report)
        err.print(f"wrote {page}", markup=False)
    if as_json:
        print_json(found)
    else:
        out.print(stats_view(found, source))


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            help="SHARD or SHARD:ROW (train-00000:12, path/x.arrow:12), or a record's id: it holds "
            "a / and does not end in .arrow.",
            metavar="SHARD:ROW|ID",
        ),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    raw: Annotated[
        bool, typer.Option("--raw", help="Token ids of a row, the special ones by name.")
    ] = False,
    wav: Annotated[
        Path | None, typer.Option("--wav", help="Write originals and reconstructions here.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode a row, or show what became of a record."""
    from pipeline.inspection import split_place

    settings = load_config(config, overrides)
    found = split_place(place)
    if found is None:
        documents = _inspect_record(settings, place, as_json)
    else:
        documents = _inspect_row(settings, *found, raw, as_json)
    if wav is not None:
        from pipeline.files import write_wavs

        for path in write_wavs(settings, documents, wav, _warn):
            err.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _inspect_row(
    settings: PipelineConfig, shard: str, row: int, raw: bool, as_json: bool
) -> list[Document]:
    from pipeline.inspect_view import documents_view
    from pipeline.inspection import document_json, documents_of, find_shard

    found = find_shard(shard, settings.run_dir)
    documents = documents_of(found, row)
    decode = _text_decoder(settings) if as_json or not raw else _no_text
    if as_json:
        shown = [document_json(document, decode, raw) for document in documents]
        print_json({"shard": found.name, "row": row, "documents": shown})
    else:
        out.print(documents_view(documents, decode, raw))
    return documents


def _inspect_record(settings: PipelineConfig, id: str, as_json: bool) -> list[Document]:
    from pipeline.inspect_view import records_view
    from pipeline.progress import counting
    from pipeline.record import find_records, record_json

    with counting(err, "searching units") as report:
        records = find_records(*opened(settings), id, report)
    # The transcript of speech is its clip's; the decoder loads the models' libraries: seconds.
    is_text = any(record.modality == TEXT and record.input_ids is not None for record in records)
    decode = _text_decoder(settings) if is_text else _no_text
    if as_json:
        print_json({"id": id, "records": [record_json(record, decode) for record in records]})
    else:
        out.print(records_view(records, decode))
    return [record.document for record in records]


def _text_decoder(settings: PipelineConfig) -> Callable[[list[int]], str]:
    """Return the function that spells text ids out."""
    from pipeline import files

    return files.text_decoder(settings)


def _no_text(ids: list[int]) -> str:
    return ""


def _warn(what: str) -> None:
    err.print(f"koe: {what}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def verify(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Read everything again and prove that it is right.

    Hashes, schemas, counts, ids, codes, grammar, order, shards, index and card.
    """
    from pipeline.verify import verify_run

    verify_run(
        *opened(load_config(config, overrides)),
        on_proof=lambda proof: out.print(
            f"[green]proved[/] {proof.what} ({proof.count:,} {proof.unit})", highlight=False
        ),
    )
