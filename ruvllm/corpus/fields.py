"""Which fields of the World Factbook are told, under which label and in which passage: a table, no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A fact of a country. `paths` are tried in turn; '*' takes the first entry, which is the latest year."""

    name: str
    label: str
    paths: tuple[str, ...]
    limit: int = 150  # characters


@dataclass(frozen=True)
class Topic:
    """Fields that are told together in one passage."""

    section: str  # in the key: geography -> factbook/gh/geography-1
    title: str
    domain: str
    fields: tuple[Field, ...]


def _f(name: str, label: str, *paths: str, limit: int = 150) -> Field:
    return Field(name, label, paths, limit)


_GEO, _PEOPLE, _GOV, _ECO = "Geography", "People and Society", "Government", "Economy"

TOPICS: tuple[Topic, ...] = (
    Topic(
        "geography",
        "Geography: capital city, location, area and borders",
        "geography",
        (
            _f("capital", "Capital", f"{_GOV}>Capital>name", limit=130),
            _f("location", "Location", f"{_GEO}>Location"),
            _f("area_total", "Total area", f"{_GEO}>Area>total"),
            _f("area_land", "Land area", f"{_GEO}>Area>land"),
            _f("area_water", "Water area", f"{_GEO}>Area>water"),
            _f("boundary", "Land boundaries, total length", f"{_GEO}>Land boundaries>total"),
            _f("neighbours", "Border countries", f"{_GEO}>Land boundaries>border countries", limit=260),
            _f("coastline", "Coastline", f"{_GEO}>Coastline"),
        ),
    ),
    Topic(
        "geography",
        "Geography: climate, terrain and elevation",
        "geography",
        (
            _f("climate", "Climate", f"{_GEO}>Climate", limit=120),
            _f("terrain", "Terrain", f"{_GEO}>Terrain", limit=90),
            _f("highest", "Highest point", f"{_GEO}>Elevation>highest point", limit=110),
            _f("lowest", "Lowest point", f"{_GEO}>Elevation>lowest point", limit=90),
            _f("mean_elevation", "Mean elevation", f"{_GEO}>Elevation>mean elevation"),
        ),
    ),
    Topic(
        "people",
        "People: population, ethnic groups, languages and religions",
        "people",
        (
            _f("population", "Population", f"{_PEOPLE}>Population>total"),
            _f("men", "Male population", f"{_PEOPLE}>Population>male"),
            _f("women", "Female population", f"{_PEOPLE}>Population>female"),
            _f("nationality", "Nationality (adjective)", f"{_PEOPLE}>Nationality>adjective", limit=60),
            _f("ethnic", "Ethnic groups", f"{_PEOPLE}>Ethnic groups", limit=80),
            _f("languages", "Languages", f"{_PEOPLE}>Languages>Languages", f"{_PEOPLE}>Languages", limit=100),
            _f("religions", "Religions", f"{_PEOPLE}>Religions", limit=80),
        ),
    ),
    Topic(
        "people",
        "People: age, births, deaths, health and education",
        "people",
        (
            _f("median_age", "Median age", f"{_PEOPLE}>Median age>total"),
            _f("growth", "Population growth rate", f"{_PEOPLE}>Population growth rate"),
            _f("births", "Birth rate", f"{_PEOPLE}>Birth rate"),
            _f("deaths", "Death rate", f"{_PEOPLE}>Death rate"),
            _f("life", "Life expectancy at birth", f"{_PEOPLE}>Life expectancy at birth>total population"),
            _f("life_men", "Life expectancy of men", f"{_PEOPLE}>Life expectancy at birth>male"),
            _f("life_women", "Life expectancy of women", f"{_PEOPLE}>Life expectancy at birth>female"),
            _f("fertility", "Total fertility rate", f"{_PEOPLE}>Total fertility rate"),
            _f("infant", "Infant mortality", f"{_PEOPLE}>Infant mortality rate>total"),
            _f("literacy", "Literacy", f"{_PEOPLE}>Literacy>total population"),
            _f("urban", "Urban population", f"{_PEOPLE}>Urbanization>urban population", limit=60),
        ),
    ),
    Topic(
        "government",
        "Government: independence, national holiday and symbols",
        "government",
        (
            _f("long_name", "Official long name", f"{_GOV}>Country name>conventional long form", limit=90),
            _f("independence", "Independence", f"{_GOV}>Independence", limit=110),
            _f("holiday", "National holiday", f"{_GOV}>National holiday", limit=90),
            _f("symbol", "National symbol", f"{_GOV}>National symbol(s)", limit=70),
            _f("colors", "National colors", f"{_GOV}>National color(s)", limit=60),
            _f("anthem", "National anthem", f"{_GOV}>National anthem(s)>title", limit=90),
        ),
    ),
    Topic(
        "government",
        "Government: type of government, law, leaders and legislature",
        "government",
        (
            _f("government", "Government type", f"{_GOV}>Government type", limit=110),
            _f("law", "Legal system", f"{_GOV}>Legal system", limit=120),
            _f("suffrage", "Suffrage", f"{_GOV}>Suffrage", limit=70),
            _f("chief", "Chief of state", f"{_GOV}>Executive branch>chief of state", limit=100),
            _f("head", "Head of government", f"{_GOV}>Executive branch>head of government", limit=90),
            _f("legislature", "Legislature", f"{_GOV}>Legislative branch>legislature name", limit=90),
            _f("chambers", "Legislative structure", f"{_GOV}>Legislative branch>legislative structure", limit=40),
        ),
    ),
    Topic(
        "economy",
        "Economy: GDP, inflation and labor",
        "economy",
        (
            _f("gdp", "Real GDP (purchasing power parity)", f"{_ECO}>Real GDP (purchasing power parity)>*"),
            _f("gdp_growth", "Real GDP growth rate", f"{_ECO}>Real GDP growth rate>*"),
            _f("gdp_head", "Real GDP per capita", f"{_ECO}>Real GDP per capita>*"),
            _f("inflation", "Inflation rate", f"{_ECO}>Inflation rate (consumer prices)>*"),
            _f("unemployment", "Unemployment rate", f"{_ECO}>Unemployment rate>*"),
            _f("labor", "Labor force", f"{_ECO}>Labor force"),
            _f("crops", "Agricultural products", f"{_ECO}>Agricultural products", limit=80),
        ),
    ),
    Topic(
        "economy",
        "Economy: trade and currency",
        "economy",
        (
            _f("exports", "Exports", f"{_ECO}>Exports>*"),
            _f("export_goods", "Export commodities", f"{_ECO}>Exports - commodities", limit=120),
            _f("export_to", "Export partners", f"{_ECO}>Exports - partners", limit=90),
            _f("imports", "Imports", f"{_ECO}>Imports>*"),
            _f("import_goods", "Import commodities", f"{_ECO}>Imports - commodities", limit=120),
            _f("import_from", "Import partners", f"{_ECO}>Imports - partners", limit=90),
            _f("currency", "Currency", f"{_ECO}>Exchange rates>Currency", limit=80),
        ),
    ),
    Topic(
        "energy",
        "Energy: electricity, petroleum and emissions",
        "energy",
        (
            _f("electrified", "Electricity access", "Energy>Electricity access>electrification - total population"),
            _f("power", "Electricity consumption", "Energy>Electricity>consumption"),
            _f("fossil", "Electricity from fossil fuels", "Energy>Electricity generation sources>fossil fuels"),
            _f("petroleum", "Refined petroleum consumption", "Energy>Petroleum>refined petroleum consumption"),
            _f("co2", "Carbon dioxide emissions", "Environment>Carbon dioxide emissions>total emissions"),
        ),
    ),
    Topic(
        "communications",
        "Communications: telephones and internet",
        "communications",
        (
            _f("internet_code", "Internet country code", "Communications>Internet country code", limit=60),
            _f("internet_users", "Internet users", "Communications>Internet users>percent of population", limit=60),
            _f("mobiles", "Mobile telephones", "Communications>Telephones - mobile cellular>total subscriptions"),
            _f("landlines", "Fixed telephone lines", "Communications>Telephones - fixed lines>total subscriptions"),
            _f("broadband", "Fixed broadband subscriptions", "Communications>Broadband - fixed subscriptions>total"),
        ),
    ),
    Topic(
        "transport",
        "Transportation: airports, railways and ports",
        "transport",
        (
            _f("airports", "Airports", "Transportation>Airports", limit=40),
            _f(
                "aircraft",
                "Aircraft registration prefix",
                "Transportation>Civil aircraft registration country code prefix",
                limit=40,
            ),
            _f("railways", "Railways, total length", "Transportation>Railways>total", limit=60),
            _f("ships", "Merchant marine, ships in total", "Transportation>Merchant marine>total", limit=40),
            _f("ports", "Ports in total", "Transportation>Ports>total ports", limit=40),
            _f("key_ports", "Key ports", "Transportation>Ports>key ports", limit=80),
        ),
    ),
)

# The data's short form is 'none', a list, or not how anyone would ask.
NAMES = {
    "cf": "Republic of the Congo",
    "cg": "Democratic Republic of the Congo",
    "dr": "Dominican Republic",
    "ee": "European Union",
    "fk": "Falkland Islands",
    "gz": "Gaza Strip",
    "um": "United States Pacific Island Wildlife Refuges",
    "vq": "United States Virgin Islands",
    "vt": "Holy See",
    "xx": "World",
}

NOT_COUNTRIES = frozenset({"xx", "ee"})  # passages, but no questions

# Names that take the article in a sentence and do not show it by their form.
WITH_ARTICLE = frozenset(
    {
        "Comoros",
        "Dominican Republic",
        "Gaza Strip",
        "Holy See",
        "Isle of Man",
        "Maldives",
        "Netherlands",
        "Philippines",
        "West Bank",
        "Central African Republic",
        "Bahamas",
        "Gambia",
    }
)
