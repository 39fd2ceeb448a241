"""Commands that look at what a run left: `koe stats, inspect, verify`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from koe.errors import ConfigError
from koe.printable import escape_control_characters
from koe.schema import TEXT
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
from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage

if TYPE_CHECKING:
    from pipeline.trace.document import Document
    from pipeline.trace.record import RecordTrace


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
        str | None,
        typer.Option(
            "--html", metavar="FOLDER", help="Write a page with charts and sound in this folder."
        ),
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
    from pipeline.execution.progress import counting
    from pipeline.stats import full_stats, stats_json
    from pipeline.terminal.stats import require_source, stats_view

    thresholds = numbers("--what-if", what_if)
    page_folder = _folder("--html", html)
    settings = load_config(config, overrides)
    plan, ledger = opened(settings)
    if source is not None:
        require_source(plan.modalities, source)
    if page_folder is not None:
        from pipeline.report import require_free

        require_free(page_folder)  # before minutes of counting
    with counting(err, "reading units") as report:
        found = full_stats(plan, ledger, thresholds, report)
    if page_folder is not None:
        from pipeline.report import write_data_report

        with counting(err, "decoding clips") as report:
            page = write_data_report(settings, plan, ledger, found, page_folder, html_clips, report)
        err.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(stats_json(found))
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
        str | None,
        typer.Option(
            "--wav", metavar="FOLDER", help="Write originals and reconstructions in this folder."
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode a row, or show what became of a record."""
    from pipeline.trace.document import documents_of, find_shard

    settings = load_config(config, overrides)
    folder = _folder("--wav", wav)
    found = _split(settings, place)
    if found is None:
        if raw:
            raise ConfigError(
                "--raw shows a row of a shard, not a record",
                f"{place} is the id of a record",
                "Leave --raw out, or name the row that `koe inspect` of this id shows.",
            )
        records = _find_records(settings, place)
        documents = [record.document for record in records]
        show = partial(_show_records, settings, place, records, as_json)
    else:
        shard = find_shard(found[0], settings.run_dir)
        documents = documents_of(shard, found[1])
        show = partial(_show_row, settings, shard.name, found[1], documents, raw, as_json)
    if folder is None:
        show()
    else:
        _with_wavs(settings, documents, folder, show)


def _split(settings: PipelineConfig, place: str) -> tuple[str, int] | None:
    """Read SHARD:ROW; None for the id of a record, one that ends in .arrow too."""
    from pipeline.trace.document import names_record, split_place

    found = split_place(place)
    if found is None or "/" not in place or "://" in place:
        return found
    storage = Storage(settings.run_dir)
    plan = load_plan(storage)
    return None if plan and names_record(place, found[0], plan, storage) else found


def _folder(option: str, text: str | None) -> Path | None:
    """Read the folder of an option. Raises: ConfigError for what names none."""
    if text is None:
        return None
    if not text or "://" in text or text.lower().endswith((".html", ".htm", ".wav")):
        raise ConfigError(
            f"{option} {text!r} names no local folder",
            remedy="Name a folder for the files; it is made where there is none.",
        )
    return Path(text)


def _with_wavs(
    settings: PipelineConfig, documents: list[Document], folder: Path, show: Callable[[], None]
) -> None:
    """Show documents, and write their audio; a folder that cannot be made comes to light first."""
    if all(document.clip is None and document.codes is None for document in documents):
        show()
        _warn("nothing was written: there is no audio, only text or what ingest left out")
        return
    from pipeline.jobs.single_files import make_folder, write_wavs

    make_folder(folder)
    show()
    for path in write_wavs(settings, documents, folder, _warn):
        err.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _show_row(
    settings: PipelineConfig,
    shard: str,
    row: int,
    documents: list[Document],
    raw: bool,
    as_json: bool,
) -> None:
    from pipeline.terminal.trace import documents_view
    from pipeline.trace.document import document_json

    decode = _text_decoder(settings) if as_json or not raw else _no_text
    if as_json:
        shown = [document_json(document, decode, raw) for document in documents]
        print_json({"shard": shard, "row": row, "documents": shown})
    else:
        out.print(documents_view(documents, decode, raw))


def _find_records(settings: PipelineConfig, id: str) -> list[RecordTrace]:
    from pipeline.execution.progress import counting
    from pipeline.trace.record import find_records

    with counting(err, "searching units") as report:
        return find_records(*opened(settings), id, report)


def _show_records(
    settings: PipelineConfig, id: str, records: list[RecordTrace], as_json: bool
) -> None:
    from pipeline.terminal.trace import records_view
    from pipeline.trace.record import record_json

    # The transcript of speech is its clip's; the decoder loads the models' libraries: seconds.
    is_text = any(record.modality == TEXT and record.input_ids is not None for record in records)
    decode = _text_decoder(settings) if is_text else _no_text
    if as_json:
        print_json({"id": id, "records": [record_json(record, decode) for record in records]})
    else:
        out.print(records_view(records, decode))


def _text_decoder(settings: PipelineConfig) -> Callable[[list[int]], str]:
    """Return the function that spells text ids out."""
    from pipeline.jobs import single_files as files

    return files.text_decoder(settings)


def _no_text(ids: list[int]) -> str:
    return ""


def _warn(what: str) -> None:
    err.print(
        f"koe: {escape_control_characters(what)}",
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept a run that is not whole.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Read everything again and prove that it is right.

    Hashes, schemas, counts, ids, codes, grammar, order, shards, index and card.
    """
    from pipeline.verify import not_made, verify_run

    run = opened(load_config(config, overrides))
    verify_run(
        *run,
        on_proof=lambda proof: out.print(
            f"[green]proved[/] {proof.what} ({proof.count:,} {proof.unit})",
            highlight=False,
            soft_wrap=True,
        ),
    )
    if missing := not_made(*run):
        _warn(f"not whole, nothing contradicts itself so far; not made: {', '.join(missing)}")
        if not partial:
            raise typer.Exit(1)
