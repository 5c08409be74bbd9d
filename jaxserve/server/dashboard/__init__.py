"""`/dashboard`: one page, its two scripts and its style sheet, and the feed that they draw.

    GET /dashboard         the page; open to all, it holds nothing
    GET /dashboard/state   one view as JSON (`metrics.view`); `jaxserve doctor` reads it
    GET /dashboard/feed    the same as server-sent events, one a second, each with what is new

With API keys the last two want the admin key: they tell of all tenants. They never tell what was asked or answered.
"""
