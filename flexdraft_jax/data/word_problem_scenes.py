"""Who and what the word problems are about: tables, no logic."""

from dataclasses import dataclass

# Names with the pronoun "he" or "she"; none ends in s, so that "'s" always works.
PEOPLE: tuple[tuple[str, str], ...] = tuple(
    [(name, "he") for name in (
        "Tom", "Ben", "Sam", "Leo", "Max", "Adam", "Omar", "Ivan", "Paul", "Noah", "Jack", "Oscar",
        "Peter", "David", "Daniel", "Kenji", "Felix", "Victor", "Martin", "Simon", "Amir", "Hugo",
    )]
    + [(name, "she") for name in (
        "Anna", "Mia", "Lily", "Emma", "Nora", "Ruth", "Sara", "Zoe", "Maria", "Alice", "Julia",
        "Laura", "Clara", "Priya", "Fatima", "Helen", "Irene", "Olga", "Rosa", "Sofia", "Diana",
        "Yuki",
    )]
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A thing to count: its noun, what it is kept in, and how one comes by it and parts with it."""

    thing: str
    things: str
    box: str
    boxes: str
    gains: tuple[str, ...]
    loses: tuple[str, ...]


ITEMS: tuple[Item, ...] = (
    Item("apple", "apples", "basket", "baskets", ("buys", "picks"), ("sells", "gives away")),
    Item("pear", "pears", "crate", "crates", ("buys", "picks"), ("sells", "eats")),
    Item("plum", "plums", "bowl", "bowls", ("buys", "picks"), ("eats", "gives away")),
    Item("lemon", "lemons", "bag", "bags", ("buys", "picks"), ("uses", "sells")),
    Item("orange", "oranges", "crate", "crates", ("buys", "gets"), ("sells", "gives away")),
    Item("tomato", "tomatoes", "bucket", "buckets", ("picks", "buys"), ("sells", "uses")),
    Item("potato", "potatoes", "sack", "sacks", ("digs up", "buys"), ("sells", "uses")),
    Item("egg", "eggs", "carton", "cartons", ("collects", "buys"), ("sells", "uses")),
    Item("cookie", "cookies", "tin", "tins", ("bakes", "buys"), ("sells", "gives away")),
    Item("muffin", "muffins", "box", "boxes", ("bakes", "buys"), ("sells", "gives away")),
    Item("candle", "candles", "box", "boxes", ("makes", "buys"), ("sells", "gives away")),
    Item("pencil", "pencils", "case", "cases", ("buys", "finds"), ("loses", "gives away")),
    Item("crayon", "crayons", "box", "boxes", ("buys", "gets"), ("loses", "gives away")),
    Item("marble", "marbles", "bag", "bags", ("wins", "finds"), ("loses", "gives away")),
    Item("sticker", "stickers", "folder", "folders", ("collects", "buys"), ("uses", "gives away")),
    Item("stamp", "stamps", "folder", "folders", ("collects", "buys"), ("uses", "sells")),
    Item("card", "cards", "box", "boxes", ("wins", "buys"), ("loses", "gives away")),
    Item("shell", "shells", "bucket", "buckets", ("finds", "collects"), ("loses", "gives away")),
    Item("stone", "stones", "bag", "bags", ("finds", "collects"), ("loses", "throws away")),
    Item("coin", "coins", "jar", "jars", ("finds", "saves"), ("spends", "gives away")),
    Item("button", "buttons", "tin", "tins", ("finds", "buys"), ("uses", "loses")),
    Item("bead", "beads", "jar", "jars", ("buys", "gets"), ("uses", "loses")),
    Item("flower", "flowers", "vase", "vases", ("picks", "buys"), ("sells", "gives away")),
    Item("balloon", "balloons", "bag", "bags", ("buys", "gets"), ("uses", "gives away")),
    Item("book", "books", "box", "boxes", ("buys", "gets"), ("sells", "gives away")),
    Item("nail", "nails", "box", "boxes", ("buys", "finds"), ("uses", "loses")),
    Item("brick", "bricks", "cart", "carts", ("buys", "gets"), ("uses", "sells")),
    Item("bottle", "bottles", "crate", "crates", ("collects", "fills"), ("sells", "gives away")),
)

DAYS: tuple[str, ...] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
