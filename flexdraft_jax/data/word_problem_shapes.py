"""The shapes of the word problems: a table, no logic.

A template names its numbers `{a}`, `{b}`, ..., its results `{r1}`, `{r2}`, ... and its worked
calculations `{s1}`, `{s2}`, .... A number with a noun, `{a:thing}`, is written "1 apple" or
"7 apples". `{A}` and `{B}` are people, `{he}`, `{He}` and `{his}` belong to `{A}`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One kind of problem.

    Attributes:
      name: identifies the shape.
      numbers: inclusive range of each given number; draws that break a step's limits are redrawn.
      steps: calculations in order; `r1` is the first result, and so on. The last is the answer.
      questions: wordings of the question.
      solution: the worked solution without its last sentence, the same for every wording.
    """

    name: str
    numbers: dict[str, tuple[int, int]]
    steps: tuple[str, ...]
    questions: tuple[str, ...]
    solution: str


_BIG = (2, 97)
_FACTOR = (2, 12)

SHAPES: tuple[Shape, ...] = (
    # One step.
    Shape(
        "gain", {"a": _BIG, "b": _BIG}, ("a + b",),
        (
            "{A} has {a:thing} in a {box}. On {day} {he} {gains} {b} more {things}. "
            "How many {things} does {A} have now?",
            "There are {a:thing} in {A}'s {box}. Then {he} {gains} another {b:thing} and puts "
            "them in too. How many {things} are in the {box} now?",
            "How many {things} does {A} have on {day} evening, "
            "if {he} has {a:thing} in the morning and {gains} {b} more during the day?",
            "On {day} {A} {gains} {b:thing}. Before that, {he} already had {a} of them in a "
            "{box}. How many {things} does {A} have now?",
        ),
        "{A} starts with {a:thing}. {He} {gains} {b} more, so we add. {s1}. "
        "Now {A} has {r1:thing}.",
    ),
    Shape(
        "lose", {"a": (5, 100), "b": _BIG}, ("a - b",),
        (
            "{A} has {a:thing} in a {box}. On {day} {he} {loses} {b} of them. "
            "How many {things} does {A} have left?",
            "In the morning there are {a:thing} in {A}'s {box}. "
            "During the day {he} {loses} {b} of the {things}. "
            "How many {things} are left in the evening?",
            "How many {things} does {A} have left, if {he} has a {box} with {a:thing} and {loses} "
            "{b} of them on {day}?",
            "On {day} {A} {loses} {b:thing}. Before that, {he} had {a} of them in a {box}. "
            "How many {things} does {A} have left?",
        ),
        "{A} starts with {a:thing}. {He} {loses} {b} of them, so we subtract. {s1}. "
        "Now {A} has {r1:thing} left.",
    ),
    Shape(
        "together", {"a": _BIG, "b": _BIG}, ("a + b",),
        (
            "{A} has {a:thing} and {B} has {b:thing}. They put all of them in one big {box}. "
            "How many {things} are in the {box}?",
            "On {day} {A} {gains} {a:thing}. {B} comes along and {gains} {b:thing} as well. "
            "How many {things} do the two of them have together?",
            "How many {things} do {A} and {B} have in all, if {A} has {a} in {his} {box} and {B} "
            "has {b} in another {box}?",
        ),
        "{A} has {a:thing}. {B} has {b:thing}. To find how many they have together, we add. {s1}. "
        "Together they have {r1:thing}.",
    ),
    Shape(
        "difference", {"a": (5, 100), "b": _BIG}, ("a - b",),
        (
            "{A} has {a:thing} in {his} {box}. {B} has only {b:thing}. "
            "How many more {things} does {A} have than {B}?",
            "On {day} {B} counts {b:thing} in one {box}, while {A} counts {a:thing} in another. "
            "How many fewer {things} does {B} have than {A}?",
            "{A} has {a:thing} and {B} has {b:thing}. They compare them on {day}. "
            "What is the difference between the two numbers of {things}?",
        ),
        "{A} has {a:thing}. {B} has {b:thing}. To find the difference, we subtract. {s1}. "
        "{A} has {r1} more than {B}.",
    ),
    Shape(
        "more_than", {"a": _BIG, "b": _BIG}, ("a + b",),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} more {things} than {A}. "
            "How many {things} does {B} have?",
            "{B} has {b} more {things} than {A}, who has {a:thing} in a {box}. "
            "How many {things} does {B} have?",
            "On {day} {A} {gains} {a:thing}. {B} {gains} {b} more {things} than {A} does. "
            "How many {things} does {B} have, if {A} and {B} both began with none?",
        ),
        "{A} has {a:thing}. {B} has {b} more than that, so we add. {s1}. {B} has {r1:thing}.",
    ),
    Shape(
        "fewer_than", {"a": (5, 100), "b": _BIG}, ("a - b",),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} fewer {things} than {A}. "
            "How many {things} does {B} have?",
            "{B} has {b} fewer {things} than {A}, who has {a:thing} in a {box}. "
            "How many {things} does {B} have?",
            "On {day} {A} fills a {box} with {a:thing}. {B} fills another {box} with {b} fewer "
            "{things}. How many {things} does {B} have?",
        ),
        "{A} has {a:thing}. {B} has {b} fewer than that, so we subtract. {s1}. {B} has {r1:thing}.",
    ),
    Shape(
        "still_needed", {"a": (5, 100), "b": _BIG}, ("a - b",),
        (
            "{A} needs {a:thing} for {day}. So far {he} has {b} of them in a {box}. "
            "How many more {things} does {A} need?",
            "{A} wants to fill a {box} that holds {a:thing}. Now there are {b:thing} in it. "
            "How many more {things} does {A} need to fill it?",
            "How many more {things} does {A} need on {day}, "
            "if {he} wants to have {a:thing} in all and already has {b}?",
        ),
        "{A} needs {a:thing} in all. {He} already has {b}, so we subtract. {s1}. "
        "{A} still needs {r1:thing}.",
    ),
    Shape(
        "groups", {"a": _FACTOR, "b": _FACTOR}, ("a x b",),
        (
            "{A} has {a:box}. There are {b:thing} in each {box}. "
            "How many {things} does {A} have in all the {boxes} together?",
            "On {day} {A} fills {a:box}. {He} puts {b:thing} in each {box}. "
            "How many {things} does {he} put in the {boxes} in all?",
            "How many {things} does {A} need on {day}, if {he} wants to fill {a:box} and each "
            "{box} holds {b:thing}?",
        ),
        "There are {a:box} with {b:thing} in each, so we multiply. {s1}. "
        "The {boxes} hold {r1:thing} in all.",
    ),
    Shape(
        "share", {"a": (4, 144), "b": _FACTOR}, ("a / b",),
        (
            "{A} has {a:thing} in a {box} and shares them equally among {b} friends. "
            "How many {things} does each friend get?",
            "On {day} {A} brings {a:thing}. They are for {b} friends, "
            "and each friend gets the same number. How many {things} does each friend get?",
            "How many {things} does each friend get, if {A} shares a {box} with {a:thing} equally "
            "among {b} friends?",
        ),
        "There are {a:thing} for {b} friends, so we divide. {s1}. Each friend gets {r1:thing}.",
    ),
    Shape(
        "pack", {"a": (4, 144), "b": _FACTOR}, ("a / b",),
        (
            "{A} packs {a:thing} into {boxes}. Each {box} holds {b:thing}. "
            "How many {boxes} does {A} need?",
            "On {day} {A} has {a:thing}. {He} puts them into {boxes}, {b} in each {box}. "
            "How many {boxes} does {A} need?",
            "How many {boxes} does {A} need for {a:thing}, if {he} puts {b:thing} in each {box}?",
        ),
        "There are {a:thing}, and {b} of them go in each {box}, so we divide. {s1}. "
        "{A} needs {r1:box}.",
    ),
    Shape(
        "times", {"a": _FACTOR, "b": _FACTOR}, ("a x b",),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} times as many {things} as {A}. "
            "How many {things} does {B} have?",
            "{B} has {b} times as many {things} as {A}, who has {a:thing} in a {box}. "
            "How many {things} does {B} have?",
            "On {day} {A} fills a {box} with {a:thing}. {B} has {b} times as many {things} at "
            "home. How many {things} does {B} have?",
        ),
        "{A} has {a:thing}. {B} has {b} times as many, so we multiply. {s1}. {B} has {r1:thing}.",
    ),
    Shape(
        "price", {"a": _FACTOR, "b": _FACTOR}, ("a x b",),
        (
            "{A} buys {a:thing} at the market on {day}. Each {thing} costs {b:dollar}. "
            "How many dollars does {A} pay?",
            "At the market each {thing} costs {b:dollar}. {A} takes {a:thing} and puts them in a "
            "{box}. How many dollars does {A} pay?",
            "How many dollars does {A} pay on {day}, if {he} buys {a:thing} and each {thing} "
            "costs {b:dollar}?",
        ),
        "{A} buys {a:thing}. Each {thing} costs {b:dollar}, so we multiply. {s1}. "
        "{A} pays {r1:dollar}.",
    ),
    # Two steps.
    Shape(
        "gain_lose", {"a": _BIG, "b": _BIG, "c": _BIG}, ("a + b", "r1 - c"),
        (
            "{A} has {a:thing} in a {box}. On {day} {he} {gains} {b} more. "
            "Later {he} {loses} {c} of them. How many {things} does {A} have now?",
            "In the morning {A} has {a:thing}. {He} {gains} {b} more at noon and {loses} {c} in "
            "the evening. How many {things} does {A} have at the end of the day?",
            "How many {things} does {A} have on {day} evening, if {he} starts with {a:thing}, "
            "then {gains} {b} more and then {loses} {c}?",
        ),
        "{A} starts with {a:thing}. {He} {gains} {b} more, so we add. {s1}. "
        "Then {he} {loses} {c}, so we subtract. {s2}. Now {A} has {r2:thing}.",
    ),
    Shape(
        "lose_gain", {"a": (5, 100), "b": _BIG, "c": _BIG}, ("a - b", "r1 + c"),
        (
            "{A} has {a:thing} in a {box}. On {day} {he} {loses} {b} of them. "
            "Later {he} {gains} {c} more. How many {things} does {A} have now?",
            "In the morning {A} has {a:thing}. {He} {loses} {b} at noon and {gains} {c} more in "
            "the evening. How many {things} does {A} have at the end of the day?",
            "How many {things} does {A} have on {day} evening, if {he} starts with {a:thing}, "
            "then {loses} {b} and then {gains} {c} more?",
        ),
        "{A} starts with {a:thing}. {He} {loses} {b}, so we subtract. {s1}. "
        "Then {he} {gains} {c} more, so we add. {s2}. Now {A} has {r2:thing}.",
    ),
    Shape(
        "groups_gain", {"a": _FACTOR, "b": _FACTOR, "c": _BIG}, ("a x b", "r1 + c"),
        (
            "{A} has {a:box} with {b:thing} in each. On {day} {he} {gains} {c} more {things}. "
            "How many {things} does {A} have now?",
            "{A} fills {a:box}. Each {box} holds {b:thing}, and {c:thing} do not fit in. "
            "How many {things} are there in all?",
            "How many {things} are there in all, if {A} has {a:box} with {b:thing} in each {box}, "
            "and {c} more {things} at home?",
        ),
        "There are {a:box} with {b:thing} in each, so we multiply. {s1}. Then there are {c} more, "
        "so we add. {s2}. In all there are {r2:thing}.",
    ),
    Shape(
        "groups_lose", {"a": _FACTOR, "b": _FACTOR, "c": _BIG}, ("a x b", "r1 - c"),
        (
            "{A} has {a:box} with {b:thing} in each. On {day} {he} {loses} {c} of the {things}. "
            "How many {things} does {A} have left?",
            "On {day} {A} fills {a:box}. {He} puts {b:thing} in each {box}. "
            "Then {he} {loses} {c:thing}. How many {things} are left?",
            "How many {things} are left, if {A} starts with {a:box}, each {box} holds {b:thing}, "
            "and {he} {loses} {c} of the {things}?",
        ),
        "There are {a:box} with {b:thing} in each, so we multiply. {s1}. Then {A} {loses} {c}, "
        "so we subtract. {s2}. {A} has {r2:thing} left.",
    ),
    Shape(
        "change", {"a": _FACTOR, "b": _FACTOR, "c": (10, 100)}, ("a x b", "c - r1"),
        (
            "{A} has {c:dollar}. On {day} {he} buys {a:thing} for {b:dollar} each. "
            "How many dollars does {A} have left?",
            "Each {thing} costs {b:dollar}. {A} goes to the market with {c:dollar} and buys "
            "{a:thing}. How many dollars does {A} have left?",
            "How many dollars does {A} have left on {day}, if {he} has {c:dollar} and buys "
            "{a:thing} that cost {b:dollar} each?",
        ),
        "{A} buys {a:thing} for {b:dollar} each, so we multiply. {s1}. "
        "{He} has {c:dollar} and pays {r1:dollar}, so we subtract. {s2}. {A} has {r2:dollar} left.",
    ),
    Shape(
        "gain_share", {"a": _BIG, "b": _BIG, "c": _FACTOR}, ("a + b", "r1 / c"),
        (
            "{A} has {a:thing} and {gains} {b} more. On {day} {he} shares all of them equally "
            "among {c} friends. How many {things} does each friend get?",
            "There are {a:thing} in {A}'s {box}. {He} {gains} {b} more and gives the same number "
            "to each of {c} friends. How many {things} does each friend get?",
            "How many {things} does each friend get, if {A} has {a:thing}, "
            "{gains} {b} more and shares them all equally among {c} friends?",
        ),
        "{A} starts with {a:thing}. {He} {gains} {b} more, so we add. {s1}. "
        "There are {r1:thing} for {c} friends, so we divide. {s2}. Each friend gets {r2:thing}.",
    ),
    Shape(
        "lose_pack", {"a": (5, 100), "b": _BIG, "c": _FACTOR}, ("a - b", "r1 / c"),
        (
            "{A} has {a:thing}. On {day} {he} {loses} {b} of them and packs the rest into "
            "{boxes}, {c} in each {box}. How many {boxes} does {A} need?",
            "{A} starts with {a:thing} and {loses} {b}. Each {box} holds {c:thing}. "
            "How many {boxes} does {A} need for the {things} that are left?",
        ),
        "{A} starts with {a:thing}. {He} {loses} {b}, so we subtract. {s1}. "
        "There are {r1:thing} left, and {c} go in each {box}, so we divide. {s2}. "
        "{A} needs {r2:box}.",
    ),
    Shape(
        "more_total", {"a": _BIG, "b": _BIG}, ("a + b", "a + r1"),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} more {things} than {A}. "
            "How many {things} do they have together?",
            "{B} has {b} more {things} than {A}, who has {a:thing} in a {box}. "
            "How many {things} do {A} and {B} have in all?",
            "How many {things} do {A} and {B} have together, "
            "if {A} has {a:thing} and {B} has {b} more {things} than {A}?",
        ),
        "{A} has {a:thing}. {B} has {b} more than that, so we add. {s1}. {B} has {r1:thing}. "
        "To find how many they have together, we add again. {s2}. Together they have {r2:thing}.",
    ),
    Shape(
        "fewer_total", {"a": _BIG, "b": _BIG}, ("a - b", "a + r1"),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} fewer {things} than {A}. "
            "How many {things} do they have together?",
            "{B} has {b} fewer {things} than {A}, who has {a:thing} in a {box}. "
            "How many {things} do {A} and {B} have in all?",
            "How many {things} do {A} and {B} have together, "
            "if {A} has {a:thing} and {B} has {b} fewer {things} than {A}?",
        ),
        "{A} has {a:thing}. {B} has {b} fewer than that, so we subtract. {s1}. "
        "{B} has {r1:thing}. To find how many they have together, we add. {s2}. "
        "Together they have {r2:thing}.",
    ),
    Shape(
        "times_total", {"a": _FACTOR, "b": _FACTOR}, ("a x b", "a + r1"),
        (
            "{A} has {a:thing} in {his} {box}. {B} has {b} times as many {things} as {A}. "
            "How many {things} do they have together?",
            "{B} has {b} times as many {things} as {A}, who has {a:thing} in a {box}. "
            "How many {things} do {A} and {B} have in all?",
            "How many {things} do {A} and {B} have together, "
            "if {A} has {a:thing} and {B} has {b} times as many {things} as {A}?",
        ),
        "{A} has {a:thing}. {B} has {b} times as many, so we multiply. {s1}. {B} has {r1:thing}. "
        "To find how many they have together, we add. {s2}. Together they have {r2:thing}.",
    ),
    Shape(
        "pages", {"a": _FACTOR, "b": _FACTOR, "c": (10, 100)}, ("a x b", "c - r1"),
        (
            "{A} is reading a book with {c:page}. {He} reads {b:page} a day for {a} days. "
            "How many pages does {A} still have to read?",
            "On {day} {A} begins a book that has {c:page}. Each day {he} reads {b:page}. "
            "How many pages are still to read after {a} days?",
            "How many pages does {A} still have to read, if {his} book has {c:page} and {he} "
            "reads {b:page} a day for {a} days?",
        ),
        "{A} reads {b:page} a day for {a} days, so we multiply. {s1}. "
        "The book has {c:page} and {A} has read {r1}, so we subtract. {s2}. "
        "{A} still has {r2:page} to read.",
    ),
    Shape(
        "age", {"a": (3, 12), "b": (2, 7), "c": (2, 20)}, ("a x b", "r1 + c"),
        (
            "{A} is {a:year} old. {B} is {b} times as old as {A}. How old will {B} be in {c:year}?",
            "{B} is {b} times as old as {A}, who is {a:year} old today. "
            "How old will {B} be when {c:year} have passed?",
            "How old will {B} be in {c:year}, if {A} is {a:year} old now and {B} is {b} times as "
            "old as {A}?",
        ),
        "{A} is {a:year} old. {B} is {b} times as old, so we multiply. {s1}. "
        "{B} is {r1:year} old now. We want the age in {c:year}, so we add. {s2}. "
        "{B} will be {r2:year} old.",
    ),
    # Three steps.
    Shape(
        "two_kinds", {"a": _FACTOR, "b": _FACTOR, "c": _FACTOR, "d": _FACTOR},
        ("a x b", "c x d", "r1 + r2"),
        (
            "{A} has {a:box} with {b:thing} in each. {B} has {c:box} with {d:thing} in each. "
            "How many {things} do they have together?",
            "On {day} {A} fills {a:box} with {b:thing} each, "
            "and {B} fills {c:box} with {d:thing} each. How many {things} do {A} and {B} have in "
            "all?",
            "How many {things} do {A} and {B} have together, "
            "if {A} has {a:box} with {b:thing} in each and {B} has {c:box} with {d:thing} in each?",
        ),
        "{A} has {a:box} with {b:thing} in each, so we multiply. {s1}. "
        "{B} has {c:box} with {d:thing} in each, so we multiply. {s2}. "
        "To find how many they have together, we add. {s3}. Together they have {r3:thing}.",
    ),
    Shape(
        "lose_share", {"a": _FACTOR, "b": _FACTOR, "c": _BIG, "d": _FACTOR},
        ("a x b", "r1 - c", "r2 / d"),
        (
            "{A} has {a:box} with {b:thing} in each. {He} {loses} {c} of the {things} and shares "
            "the rest equally among {d} friends. How many {things} does each friend get?",
            "On {day} {A} brings {a:box} with {b:thing} in each. First {he} {loses} {c:thing}. "
            "Then {d} friends share the rest equally. How many {things} does each friend get?",
        ),
        "There are {a:box} with {b:thing} in each, so we multiply. {s1}. Then {A} {loses} {c}, "
        "so we subtract. {s2}. There are {r2:thing} for {d} friends, so we divide. {s3}. "
        "Each friend gets {r3:thing}.",
    ),
    Shape(
        "shopping", {"a": _FACTOR, "b": _FACTOR, "c": (2, 30), "d": (20, 100)},
        ("a x b", "r1 + c", "d - r2"),
        (
            "{A} buys {a:thing} for {b:dollar} each and a {box} for {c:dollar}. "
            "{He} pays with {d:dollar}. How many dollars does {A} get back?",
            "On {day} {A} goes to the market with {d:dollar}. "
            "{He} buys a {box} for {c:dollar} and {a:thing} for {b:dollar} each. "
            "How many dollars does {A} have left?",
        ),
        "{A} buys {a:thing} for {b:dollar} each, so we multiply. {s1}. "
        "The {box} costs {c:dollar}, so we add. {s2}. {He} has {d:dollar} and pays {r2:dollar}, "
        "so we subtract. {s3}. {A} has {r3:dollar} left.",
    ),
    Shape(
        "three_changes", {"a": _BIG, "b": _BIG, "c": _BIG, "d": _BIG},
        ("a + b", "r1 - c", "r2 + d"),
        (
            "{A} has {a:thing} and {gains} {b} more. On {day} {he} {loses} {c} of them, "
            "and {B} gives {A} {d:thing}. How many {things} does {A} have now?",
            "In the morning {A} has {a:thing} in a {box}. {He} {gains} {b} more, {loses} {c}, "
            "and then gets {d:thing} from {B}. How many {things} does {A} have now?",
        ),
        "{A} starts with {a:thing}. {He} {gains} {b} more, so we add. {s1}. "
        "Then {he} {loses} {c}, so we subtract. {s2}. Then {B} gives {A} {d}, so we add. {s3}. "
        "Now {A} has {r3:thing}.",
    ),
)  # fmt: skip
