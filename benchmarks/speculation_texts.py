"""What `speculation.py` asks for: texts and code to be given back changed a little, and stories.

All were written for this benchmark.
"""

PASSAGES = (
    "The lighthouse at Skarne was built in 1871 from granite cut on the island itself. Its lamp "
    "burned rape oil until 1904, then paraffin, and since 1962 electricity from the mainland. The "
    "keeper's house has six rooms, a cellar for the oil and a bell that was rung by hand in fog.",
    "A sourdough starter needs flour, water and patience. Mix 50 grams of rye flour with 50 grams "
    "of water, cover it, and leave it at room temperature for a day. Throw half away, feed it with "
    "the same amounts again, and repeat this every day until it doubles within six hours.",
    "The committee met on Tuesday in room 214. Present were Ana Aldana, Per Holm, Wu Jing and the "
    "secretary. The minutes of the last meeting were accepted. The budget for the reading room was "
    "raised from 4,200 to 4,800 euros, and the roof will be inspected before the first of October.",
    "Glaciers carve valleys with a round bottom and steep sides, while rivers cut valleys in the "
    "shape of a V. When a glacier melts it leaves a ridge of rubble, the moraine, at the place "
    "where it ended. Lakes often form behind moraines, since rubble holds water back like a dam.",
    "Order 88213 was placed on 3 March and contains two desk lamps, one extension lead of 5 "
    "metres and a box of screws. The lamps left the warehouse on 5 March. The extension lead "
    "is out of stock until 19 March, and the screws will be sent together with it without charge.",
    "The heron stands in shallow water for a long time without moving. When a fish comes near, the "
    "neck unfolds in a fraction of a second. Herons nest in colonies high up in old trees, lay "
    "three to five eggs, and both parents sit on the eggs in turn for about twenty-five days.",
    "To replace the filter, switch the pump off and close the blue valve. Turn the cover to the "
    "left until it clicks, lift it, and pull the old filter out by its handle. Rinse the housing, "
    "push the new filter in until it clicks, put the cover back, and open the blue valve slowly.",
    "The old tram line ran from the harbour to the brewery, a distance of seven kilometres with "
    "nineteen stops. It was opened in 1899 with horses, had motors from 1908, and was closed in "
    "1959. Parts of the track can still be seen in Mill Street and behind the fire station.",
    "Clause 7. The tenant keeps the garden in order and waters it in dry months. Clause 8. Repairs "
    "of less than 120 euros are paid by the tenant, all others by the owner. Clause 9. Either side "
    "may end this contract in writing, three months before the end of a quarter, without reason.",
    "Tin melts at 232 degrees, lead at 327 and copper at 1,085. Mixed with copper, tin makes "
    "bronze, which is harder than either metal. Bronze was used for tools and weapons for ages, "
    "until smiths learned to heat iron enough to work it, and iron was found anywhere.",
)
FILES = (
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n\n\ndef variance(values):\n    center = mean(values)\n"
    "    total = 0.0\n    for value in values:\n        total += (value - center) ** 2\n"
    "    return total / len(values)\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    "        self.items.append(item)\n\n    def pop(self):\n        return self.items.pop()\n\n"
    "    def peek(self):\n        return self.items[-1]\n\n    def is_empty(self):\n"
    "        return len(self.items) == 0\n",
    "import json\n\n\ndef load_settings(path):\n    with open(path) as file:\n"
    "        settings = json.load(file)\n    if 'host' not in settings:\n"
    "        raise ValueError('host is missing')\n    if 'port' not in settings:\n"
    "        raise ValueError('port is missing')\n    return settings\n",
    "function fillTable(table, rows) {\n  for (const row of rows) {\n"
    "    const line = document.createElement('tr');\n    for (const value of row) {\n"
    "      const cell = document.createElement('td');\n      cell.textContent = value;\n"
    "      line.appendChild(cell);\n    }\n    table.appendChild(line);\n  }\n}\n",
    "SELECT customers.name, orders.placed_at, orders.total\nFROM customers\n"
    "JOIN orders ON orders.customer_id = customers.id\nWHERE orders.total > 100\n"
    "  AND orders.placed_at >= '2024-01-01'\n  AND customers.country = 'SE'\n"
    "ORDER BY orders.placed_at DESC, customers.name\nLIMIT 50;\n",
    "struct Point { double x, y; };\n\ndouble distance(const Point& a, const Point& b) {\n"
    "  double dx = a.x - b.x;\n  double dy = a.y - b.y;\n  return std::sqrt(dx * dx + dy * dy);\n"
    "}\n\nPoint middle(const Point& a, const Point& b) {\n"
    "  return {(a.x + b.x) / 2, (a.y + b.y) / 2};\n}\n",
    "server:\n  host: 0.0.0.0\n  port: 8080\n  workers: 4\n  timeout: 30\nlogging:\n"
    "  level: info\n  file: /var/log/server.log\n  rotate: daily\ndatabase:\n"
    "  host: db.internal\n  port: 5432\n  name: orders\n  user: orders\n  pool: 10\n",
    "func Sum(numbers []int) int {\n\ttotal := 0\n\tfor _, number := range numbers {\n"
    "\t\ttotal += number\n\t}\n\treturn total\n}\n\nfunc Max(numbers []int) int {\n"
    "\tbest := numbers[0]\n\tfor _, number := range numbers {\n\t\tif number > best {\n"
    "\t\t\tbest = number\n\t\t}\n\t}\n\treturn best\n}\n",
    "<ul class=\"menu\">\n  <li><a href=\"/home\">Home</a></li>\n"
    "  <li><a href=\"/products\">Products</a></li>\n  <li><a href=\"/prices\">Prices</a></li>\n"
    "  <li><a href=\"/news\">News</a></li>\n  <li><a href=\"/contact\">Contact</a></li>\n"
    "  <li><a href=\"/imprint\">Imprint</a></li>\n</ul>\n",
    "def test_empty_cart_costs_nothing():\n    cart = Cart()\n    assert cart.total() == 0\n\n\n"
    "def test_one_item_costs_its_price():\n    cart = Cart()\n    cart.add('pen', 3)\n"
    "    assert cart.total() == 3\n\n\ndef test_two_items_cost_their_sum():\n    cart = Cart()\n"
    "    cart.add('pen', 3)\n    cart.add('book', 12)\n    assert cart.total() == 15\n",
)  # fmt: skip
BEGINNINGS = (
    "The last train had left, and Mira", "In the year the river froze, my uncle",
    "Nobody at the observatory believed", "A recipe for a bad evening begins with",
    "What I remember of the island is", "The letter was addressed to a man who",
    "Three inventions changed the village:", "Before the storm, the orchestra",
    "Her second experiment needed", "The museum's smallest room holds",
)  # fmt: skip
"""Of stories, which are drawn at temperature 1 and so go on without repeating themselves."""


def copies() -> list[str]:
    """Prompts whose answers repeat much of them."""
    asked = [
        (text, "Write the text again, word for word, with every number spelled out.")
        for text in PASSAGES
    ] + [(file, "Write the file again, with one comment added at the top.") for file in FILES]
    return [
        f"<|im_start|>user\n{ask}\n\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for text, ask in asked
    ]
