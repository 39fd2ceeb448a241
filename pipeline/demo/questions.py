"""Generators of Japanese questions whose answers are computed or looked up, and so are true."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

Rng = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """One question and its answer; `input` may be empty."""

    instruction: str
    input: str
    output: str
    category: str


@cache
def facts() -> dict[str, Any]:
    """Return the tables that ship with koe."""
    return yaml.safe_load(
        resources.files("pipeline.demo").joinpath("facts.yaml").read_text("utf-8")
    )


def some(rng: Rng, items: list[Any], num: int) -> list[Any]:
    """Draw `num` different items in random order, all where there are fewer."""
    return [items[int(place)] for place in rng.permutation(len(items))[:num]]


def one(rng: Rng, items: list[Any]) -> Any:
    """Draw one item."""
    return items[int(rng.integers(len(items)))]


def shopping(rng: Rng) -> Sample:
    name, price, count = (
        one(rng, facts()["categories"]["文房具"]),
        10 * int(rng.integers(5, 90)),
        int(rng.integers(2, 13)),
    )
    paid = -(-price * count // 1000) * 1000
    return Sample(
        "次の買い物の合計金額とおつりを、計算の手順が分かるように答えてください。",
        f"一つ{price}円の{name}を{count}個買い、{paid}円を出しました。",
        f"合計金額は、{price}円×{count}個＝{price * count}円です。\n"
        f"おつりは、{paid}円－{price * count}円＝{paid - price * count}円です。",
        "算数",
    )


def arithmetic(rng: Rng) -> Sample:
    a, b, c = (int(n) for n in rng.integers(12, 99, 3))
    return Sample(
        f"{a}×{b}＋{c} を計算してください。途中の式も書いてください。",
        "",
        f"かけ算を先に計算します。\n{a}×{b}＝{a * b}\n次に{c}を足します。\n"
        f"{a * b}＋{c}＝{a * b + c}\n答えは{a * b + c}です。",
        "算数",
    )


_UNITS = (  # bigger, smaller, factor, what it measures
    ("キロメートル", "メートル", 1000, "長さ"),
    ("メートル", "センチメートル", 100, "長さ"),
    ("センチメートル", "ミリメートル", 10, "長さ"),
    ("キログラム", "グラム", 1000, "重さ"),
    ("トン", "キログラム", 1000, "重さ"),
    ("リットル", "ミリリットル", 1000, "かさ"),
    ("時間", "分", 60, "時間"),
    ("分", "秒", 60, "時間"),
    ("平方メートル", "平方センチメートル", 10000, "面積"),
)


def unit_conversion(rng: Rng) -> Sample:
    big, small, factor, what = _UNITS[int(rng.integers(len(_UNITS)))]
    count = int(rng.integers(2, 250))
    return Sample(
        f"{count}{big}は何{small}ですか。換算の考え方も説明してください。",
        "",
        f"{big}と{small}は、どちらも{what}の単位です。一{big}は{factor}{small}なので、"
        f"{count}×{factor}＝{count * factor}となり、{count}{big}は{count * factor}{small}です。",
        "単位換算",
    )


def capitals(rng: Rng) -> Sample:
    chosen = some(rng, facts()["prefectures"], int(rng.integers(2, 9)))
    return Sample(
        "次の都道府県について、都道府県庁のある市を一つずつ答えてください。",
        "、".join(name for name, _ in chosen),
        "\n".join(f"・{name}：{capital}" for name, capital in chosen),
        "地理",
    )


def kanji_readings(rng: Rng) -> Sample:
    chosen = some(rng, facts()["kanji"], int(rng.integers(1, 5)))
    return Sample(
        "次の言葉の読み方と意味を教えてください。",
        "、".join(word for word, *_ in chosen),
        "\n".join(
            f"「{word}」は「{reading}」と読みます。{meaning}を表す言葉です。"
            for word, reading, meaning in chosen
        ),
        "漢字",
    )


def polite_form(rng: Rng) -> Sample:
    chosen = some(rng, facts()["polite"], int(rng.integers(1, 6)))
    return Sample(
        "次の文を、丁寧な言い方（です・ます調）に書き換えてください。",
        "".join(plain for plain, _ in chosen),
        "".join(polite for _, polite in chosen),
        "文の書き換え",
    )


def translation(rng: Rng) -> Sample:
    chosen = some(rng, facts()["phrases"], int(rng.integers(1, 6)))
    japanese, english = zip(*chosen, strict=True)
    if rng.random() < 0.5:
        return Sample(
            "次の日本語を英語に訳してください。", "\n".join(japanese), "\n".join(english), "翻訳"
        )
    return Sample(
        "次の英語を日本語に訳してください。", "\n".join(english), "\n".join(japanese), "翻訳"
    )


def summary(rng: Rng) -> Sample:
    chosen = some(rng, facts()["passages"], int(rng.choice([1, 1, 2, 3, 4])))
    wanted = (
        "次の文章を一文で要約してください。"
        if len(chosen) == 1
        else "次の各文章を、それぞれ一文で要約してください。"
    )
    return Sample(
        wanted,
        "\n\n".join(f"【{title}】\n{text}" for title, text, _ in chosen),
        "\n".join(f"【{title}】{short}" for title, _, short in chosen),
        "要約",
    )


_WEEKDAYS = "月火水木金土日"


def _date(day: datetime.date) -> str:
    return f"{day.year}年{day.month}月{day.day}日"


def calendar(rng: Rng) -> Sample:
    day = datetime.date(1990, 1, 1) + datetime.timedelta(int(rng.integers(0, 17000)))
    later = int(rng.integers(10, 200))
    end = day + datetime.timedelta(later)
    return Sample(
        f"{_date(day)}は何曜日ですか。また、その{later}日後は何年何月何日の何曜日ですか。",
        "",
        f"{_date(day)}は{_WEEKDAYS[day.weekday()]}曜日です。{later}日は{later // 7}週間と{later % 7}日なので、"
        f"曜日は{later % 7}日分進みます。したがって、{later}日後は{_date(end)}の"
        f"{_WEEKDAYS[end.weekday()]}曜日です。",
        "暦",
    )


def imperial_year(rng: Rng) -> Sample:
    year = int(rng.integers(1927, 2026))
    # years in which an era ended belong to two eras and are passed over
    year += year in (1989, 2019)
    era, before = (
        ("昭和", 1925) if year < 1989 else ("平成", 1988) if year < 2019 else ("令和", 2018)
    )
    return Sample(
        f"西暦{year}年は、和暦では何年ですか。",
        "",
        f"西暦{year}年は{era}{year - before}年です。{era}の年数は、西暦の年から{before}を引くと求められます。",
        "暦",
    )


def arrival(rng: Rng) -> Sample:
    start, ride, walk = (
        int(rng.integers(300, 1200)),
        int(rng.integers(8, 170)),
        int(rng.integers(3, 25)),
    )
    ride_end, end = start + ride, start + ride + walk
    clock = [f"{minute // 60}時{minute % 60}分" for minute in (start, ride_end, end)]
    return Sample(
        "次の予定では、目的地に何時何分に着きますか。順を追って答えてください。",
        f"{clock[0]}発の電車に{ride}分乗り、降りた駅から目的地まで{walk}分歩きます。",
        f"電車が駅に着くのは、{clock[0]}の{ride}分後なので{clock[1]}です。そこから{walk}分歩くので、"
        f"目的地に着くのは{clock[2]}です。",
        "時刻",
    )


def list_making(rng: Rng) -> Sample:
    name = one(rng, list(facts()["categories"]))
    chosen = some(rng, facts()["categories"][name], int(rng.integers(3, 11)))
    return Sample(
        f"{name}の名前を{len(chosen)}個、箇条書きで挙げてください。",
        "",
        "\n".join(f"{place}. {item}" for place, item in enumerate(chosen, 1)),
        "一覧",
    )


def odd_one_out(rng: Rng) -> Sample:
    main, other = some(rng, list(facts()["categories"]), 2)
    odd = one(rng, facts()["categories"][other])
    rest = some(rng, facts()["categories"][main], int(rng.integers(3, 6)))
    return Sample(
        "次の言葉のうち、仲間外れはどれですか。理由も述べてください。",
        "、".join(some(rng, [*rest, odd], len(rest) + 1)),
        f"仲間外れは「{odd}」です。{'、'.join(rest)}はいずれも{main}ですが、{odd}は{other}に分類されます。",
        "分類",
    )


def table_to_json(rng: Rng) -> Sample:
    names = [item for group in ("果物", "野菜", "魚") for item in facts()["categories"][group]]
    rows = [
        {"品名": name, "個数": int(rng.integers(1, 60)), "単価": 10 * int(rng.integers(5, 80))}
        for name in some(rng, names, int(rng.integers(2, 14)))
    ]
    lines = ["品名,個数,単価", *(f"{row['品名']},{row['個数']},{row['単価']}" for row in rows)]
    output = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return Sample(
        "次のCSVを、一行に一件のJSONに変換してください。", "\n".join(lines), output, "書式の変換"
    )


def ledger(rng: Rng) -> Sample:
    """A long sample: an account book of 8 to 40 lines, summed step by step."""
    items = [item for group in facts()["categories"].values() for item in group]
    lines, steps, total = [], [], 0
    for day in range(1, int(rng.integers(9, 42))):
        name, yen = one(rng, items), 10 * int(rng.integers(8, 400))
        lines.append(f"{day}日目：{name}の代金 {yen}円")
        steps.append(f"{day}日目まで：{total}＋{yen}＝{total + yen}円")
        total += yen
    return Sample(
        "次の出納帳の支出を順に足して、途中の合計と最後の合計を示してください。",
        "\n".join(lines),
        "\n".join([*steps, f"支出の合計は{total}円です。"]),
        "算数",
    )


def multiplication_table(rng: Rng) -> Sample:
    """The longest samples: up to 700 lines, more than one row of 2048 tokens holds."""
    first, last = (int(n) for n in np.sort(rng.choice(np.arange(2, 90), 2, replace=False)))
    lines = [f"{a}×{b}＝{a * b}" for a in range(first, last + 1) for b in range(1, 10)][:700]
    stop = first + (len(lines) - 1) // 9
    return Sample(
        f"{first}の段から{last}の段までのかけ算の表を、一行に一つずつ書いてください。長ければ七百行まででかまいません。",
        "",
        "\n".join(lines) + f"\n以上、{first}の段から{stop}の段までの{len(lines)}行です。",
        "算数",
    )
