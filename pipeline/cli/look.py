"""Commands that show and check what a run made: `koe stats, inspect, verify`."""

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
    open_run,
    out,
    parse_numbers,
    print_json,
    say,
)
from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig

if TYPE_CHECKING:
    from pipeline.trace.document import Document
    from pipeline.trace.record import RecordTrace


def stats(
    config: ConfigOption = DEFAULT_CONFIG,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="NUMBERS|CHECK=VALUE",
            help="Show what each of these ovrl thresholds would keep, as in 2.0,2.5; or what the "
            "checks of transcripts would reject with a key of their section at this value, as in "
            "max_characters_per_second=15. May be given several times.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Show only this source; --json and --html always cover all.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    html: Annotated[
        str | None,
        typer.Option(
            "--html", metavar="FOLDER", help="Write a page with charts and audio into this folder."
        ),
    ] = None,
    html_clips: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of best, worst and borderline clips on the page; half as many outliers.",
        ),
    ] = 6,
) -> None:
    """Show what became of every record, and what the shards hold."""
    from pipeline.execution.progress import counting
    from pipeline.stats import full_stats, stats_json
    from pipeline.terminal.stats import require_source, stats_view

    thresholds, checks = _what_if(what_if or [])
    page_folder = _folder("--html", html)
    settings = load_config(config, overrides)
    if checks:
        settings = load_config(config, [*(overrides or []), *checks], "--what-if")
    plan, ledger = open_run(settings)
    if source is not None:
        require_source(plan.modalities, source)
    if page_folder is not None:
        from pipeline.report import require_free

        require_free(page_folder)  # before minutes of counting
    with counting(err, "reading units") as report:
        found = full_stats(
            plan,
            ledger,
            thresholds,
            report,
            transcripts=settings.transcripts,
            speech_prompt=settings.tokenize.speech_prompt,
        )
    if page_folder is not None:
        from pipeline.report import write_data_report

        with counting(err, "decoding clips") as report:
            page = write_data_report(settings, plan, ledger, found, page_folder, html_clips, report)
        say(f"wrote {page}")
    if as_json:
        print_json(stats_json(found))
    else:
        out.print(stats_view(found, source))


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            help="A row of a shard (train-00000:12 or path/x.arrow:12; row 0 if none is named), or "
            "the id of a record, or the row of a unit where it lies (UNIT#ROW).",
            metavar="SHARD:ROW|ID",
        ),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    raw: Annotated[
        bool, typer.Option("--raw", help="Show the token ids of a row, special ones by name.")
    ] = False,
    wav: Annotated[
        str | None,
        typer.Option(
            "--wav",
            metavar="FOLDER",
            help="Write originals and reconstructions as WAV into this folder.",
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode a row of a shard, or show what became of a record."""
    from pipeline.execution.progress import counting
    from pipeline.trace.document import documents_of, find_shard, split_place
    from pipeline.trace.record import find_records

    settings = load_config(config, overrides)
    folder = _folder("--wav", wav)
    name, row = split_place(place)
    shard = find_shard(name, settings.run_dir)
    if shard is None:
        if raw:
            raise ConfigError(
                "--raw shows a row of a shard, not a record",
                f"{place} is the id of a record",
                "Leave --raw out, or name the row that `koe inspect` of this id shows.",
            )
        with counting(err, "searching units") as report:
            records = find_records(*open_run(settings), place, report)
        documents = [record.document for record in records]
        show = partial(_show_records, settings, place, records, as_json)
    else:
        documents = documents_of(shard, row)
        show = partial(_show_row, settings, shard.name, row, documents, raw, as_json)
    if folder is None:
        show()
    else:
        _with_wavs(settings, documents, folder, show)


def _what_if(values: list[str]) -> tuple[list[float], list[str]]:
    """Return the thresholds of ovrl to show, and the checks of transcripts as overrides of keys."""
    from pipeline.stats.scores import WHAT_IF_OVRL

    numbers = [value for value in values if "=" not in value]
    checks = [f"transcripts.{value}" for value in values if "=" in value]
    found = [number for text in numbers for number in parse_numbers("--what-if", text)]
    return found or list(WHAT_IF_OVRL), checks


def _folder(option: str, text: str | None) -> Path | None:
    """Read the folder of an option. Raises: ConfigError for what names none."""
    if text is None:
        return None
    if not text or "://" in text or text.lower().endswith((".html", ".htm", ".wav")):
        raise ConfigError(
            f"{option} {text!r} does not name a local folder",
            remedy="Name a folder for the files; it is created if need be.",
        )
    return Path(text)


def _with_wavs(
    settings: PipelineConfig, documents: list[Document], folder: Path, show: Callable[[], None]
) -> None:
    """Show documents, and write their audio; a folder that cannot be made is reported first."""
    if all(document.clip is None and document.codes is None for document in documents):
        show()
        _warn("no audio was written: the documents are text, or ingest left them out")
        return
    from pipeline.jobs.single_files import make_folder, write_wavs

    make_folder(folder)
    show()
    for path in write_wavs(settings, documents, folder, _warn):
        say(f"wrote {path}")


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


def _show_records(
    settings: PipelineConfig, id: str, records: list[RecordTrace], as_json: bool
) -> None:
    from pipeline.terminal.trace import records_view
    from pipeline.trace.record import record_json

    # The transcript of speech is its clip's: only text needs the decoder.
    is_text = any(record.modality == TEXT and record.input_ids is not None for record in records)
    decode = _text_decoder(settings) if is_text else _no_text
    if as_json:
        print_json({"id": id, "records": [record_json(record, decode) for record in records]})
    else:
        out.print(records_view(records, decode))


def _text_decoder(settings: PipelineConfig) -> Callable[[list[int]], str]:
    """Return the function that spells text ids out; loading it takes seconds."""
    from pipeline.jobs.single_files import text_decoder

    return text_decoder(settings)


def _no_text(ids: list[int]) -> str:
    return ""


def _warn(what: str) -> None:
    say(f"koe: {escape_control_characters(what)}", "yellow")


def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    partial: Annotated[bool, typer.Option("--partial", help="Accept an incomplete run.")] = False,
    overrides: SetOption = None,
) -> None:
    """Read every file again and prove that the run is right.

    Proves hashes, schemas, record counts, ids, codes, token layout, order, shards, index and card.
    """
    from pipeline.verify import not_made, verify_run

    run = open_run(load_config(config, overrides))
    verify_run(
        *run,
        on_proof=lambda proof: out.print(
            f"[green]proved[/] {proof.what} ({proof.count:,} {proof.unit})",
            highlight=False,
            soft_wrap=True,
        ),
    )
    if missing := not_made(*run):
        _warn(f"the run is incomplete, but consistent so far; missing: {', '.join(missing)}")
        if not partial:
            raise typer.Exit(1)
