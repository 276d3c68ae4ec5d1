"""The OpenAPI document: what each route takes and answers, in tables, and the document made of them."""
