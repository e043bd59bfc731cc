import pytest

from diptych_shards.extract.pairs import CaptionSource
from tests.data_prep.extract.crawls import PAGE_URL, dropped, page, pairs

A = "https://a.example"


def test_a_picture_with_an_alt_is_a_pair():
    (pair,) = page('<img src="x.jpg" alt=" A  red\n house " width=640 height="480px">').pairs.items()
    assert pair == ((f"{A}/dir/x.jpg", "A red house"), (CaptionSource.ALT, 640, 480))


@pytest.mark.parametrize(
    "tag",
    [
        "<IMG SRC=x.jpg ALT='two words'>",
        "<img alt='two words'src='x.jpg'>",
        "<img\nalt = 'two words'\n/src=x.jpg/>".replace("x.jpg/>", "x.jpg />"),
        '<img src="x.jpg" alt="two words" alt="others">',
        '<img title="a > b" src="x.jpg" alt="two words">',
        "<img title='\"' src='x.jpg' alt='two words'>",
        '<img title=it\'s src="x.jpg" alt="two words">',
        '<p title="<img src=y.jpg alt=no>"></p><img src="x.jpg" alt="two words">',
        '<a b"c><img src="x.jpg" alt="two words">',
        '<img src="x.jpg" alt="two&#32;words">',
        '<img src="&#120;.jpg" alt="two words">',
        '<img src="\tx.jpg\n" alt="two words">',
    ],
)
def test_tags_are_read_as_a_browser_reads_them(tag):
    assert pairs(tag) == [(f"{A}/dir/x.jpg", "two words")]


@pytest.mark.parametrize(
    "html",
    [
        "<!-- <img src=x.jpg alt=words> -->",
        "<!--> --><!-- <img src=x.jpg alt=words> --!>",
        "<script>'<img src=x.jpg alt=words>'</script>",
        "<SCRIPT>a<b '</scr' <img src=x.jpg alt=words></Script >",
        "<style><img src=x.jpg alt=words></style>",
        "<textarea><img src=x.jpg alt=words></textarea>",
        "<title><img src=x.jpg alt=words></title>",
        "<iframe><img src=x.jpg alt=words></iframe>",
        "<!doctype <img src=x.jpg alt=words>",
        "<img src=x.jpg alt='words>",
        "<imgs src=x.jpg alt=words>",
        "< img src=x.jpg alt=words>",
    ],
)
def test_what_a_browser_does_not_show_is_no_picture(html):
    assert pairs(html) == []


def test_scripts_and_comments_end_where_they_do():
    html = "<script><!-- </script><img src=1.jpg alt=1><!-- > -->"
    html += "<img src=2.jpg alt=2><style></style x><img src=3.jpg alt=3>"
    assert [caption for _, caption in pairs(html)] == ["1", "2", "3"]


def test_a_query_that_looks_like_an_entity_stays():
    assert pairs('<img src="x.jpg?a=1&copy=2&amp;lt=3&notit;" alt="&copy; us&notit;">') == [
        (f"{A}/dir/x.jpg?a=1&copy=2&lt=3&notit;", "© us&notit;")
    ]


def test_addresses_are_resolved_against_the_first_base_which_is_relative_itself():
    html = '<base target=_blank><base href="../other/"><base href="/third/"><img src=x.jpg alt=words>'
    assert pairs(html) == [(f"{A}/other/x.jpg", "words")]
    assert pairs('<base href="javascript:no"><img src=x.jpg alt=words>') == [(f"{A}/dir/x.jpg", "words")]


@pytest.mark.parametrize(
    "attributes",
    [
        'src="data:image/gif;base64,R0" data-src="x.jpg"',
        'src="placeholder.jpg" data-src="x.jpg"',
        'data-lazy-src="x.jpg"',
        'data-original="x.jpg" src=""',
        'data-srcset="s.jpg 100w, x.jpg 900w" src="s.jpg"',
        'data-lazy-srcset="x.jpg 2x, s.jpg 1x" srcset="data:image/gif;base64,R0 1w"',
        'srcset="s.jpg, x.jpg 1.5x" src="s.jpg"',
    ],
)
def test_lazy_and_responsive_pictures_give_their_true_and_largest_address(attributes):
    assert pairs(f"<img {attributes} alt=words>") == [(f"{A}/dir/x.jpg", "words")]


def test_content_of_noscript_is_markup_and_gives_no_second_pair():
    html = (
        '<img data-src=x.jpg alt="words"><noscript><img src="x.jpg" alt=words><img src="y.jpg" alt="more"></noscript>'
    )
    assert [url for url, _ in pairs(html)] == [f"{A}/dir/x.jpg", f"{A}/dir/y.jpg"]
    assert dropped(html) == {"placeholder or copy of the picture beside it": 1}


@pytest.mark.parametrize(
    "attribute",
    "data-src data-lazy-src data-original data-lazy data-lazyload data-url data-orig-file data-large-file "
    "data-hi-res-src data-echo data-image data-srcset data-lazy-srcset data-lazy-img data-retina-src imgurl".split(),
)
def test_the_address_that_a_script_will_load_is_taken_and_not_the_placeholder(attribute):
    html = f'<img class="lazy" src="p.png" srcset="p.png 10w" {attribute}="x.jpg" alt="words">'
    assert pairs(html) == [(f"{A}/dir/x.jpg", "words")]
    assert pairs(html + "<noscript><img src='x.jpg' alt='words'></noscript>") == [(f"{A}/dir/x.jpg", "words")]


@pytest.mark.parametrize(
    "attribute", "src2 image-src data-delaysrc data-isrc _src data-thumb_url data-whatever".split()
)
def test_an_image_without_an_address_of_its_own_takes_what_looks_like_one(attribute):
    for src in ("", "src='data:image/gif;base64,R0'"):
        for url in (f"{A}/x.jpg", "//a.example/x.jpg?v=1"):
            assert pairs(f"<img {src} {attribute}='{url}' alt=words>")[0][0].startswith(f"{A}/x.jpg")
    assert pairs(f"<img src=y.jpg {attribute}={A}/x.jpg alt=words>") == [(f"{A}/dir/y.jpg", "words")]


@pytest.mark.parametrize(
    "attribute",
    [
        "data-link=https://a.example/page.html",
        "data-src-type=image",
        "data-isrc='//a.example/{{ name }}.jpg'",
        "data-isrc=https://a.example/{index}.jpg",
        "data-name=x.jpg",
        "title=https://a.example/x.jpg",
        "onclick='https://a.example/x.jpg'",
    ],
)
def test_only_what_looks_like_the_address_of_a_picture_is_one(attribute):
    assert pairs(f"<img src=data:image/gif;base64,R0 {attribute} alt=words>") == []


@pytest.mark.parametrize(
    "html",
    [
        "<img class='photo lazy' src=p.jpg alt=words><noscript><img src=x.jpg alt=words></noscript>",
        "<img class=lazyload src=p.jpg data-x='{}' alt=words>\n<noscript>\n<img src=x.jpg></noscript>",
        "<img class=lazyload src=p.jpg><NOSCRIPT class=a><img src=x.jpg alt=words></NOSCRIPT>",
        "<img src='data:image/gif;base64,R0' alt=words><noscript><img src=x.jpg alt=words></noscript>",
        "<img src=blurred.jpg alt=words><noscript><img src=x.jpg alt=words></noscript>",
        "<noscript><img src=x.jpg alt=words></noscript><img class=lazy src=p.jpg alt=words>",
        "<img class=lazy data-src=x.jpg alt=words><noscript><img src=x-300.jpg alt=words></noscript>",
        "<amp-img src=y.jpg alt=words><noscript><img src=x.jpg alt=words></noscript></amp-img>",
        "<figure><img class=lazy src=p.jpg><noscript><img src=x.jpg></noscript><figcaption>words</figcaption></figure>",
    ],
)
def test_a_picture_with_a_copy_for_browsers_without_scripts_gives_one_pair_with_its_true_address(html):
    assert pairs(html + "<img src=y.jpg alt=other>") == [(f"{A}/dir/x.jpg", "words"), (f"{A}/dir/y.jpg", "other")]
    assert dropped(html) == {"placeholder or copy of the picture beside it": 1}


@pytest.mark.parametrize(
    "html",
    [
        "<img src=x.jpg alt=words><noscript><img src=https://t.example/count height=1 width=1></noscript>",
        "<img class=lazy src=x.jpg alt=words><noscript><img src=https://t.example/count height=1 width=1></noscript>",
        "<noscript><img src=https://t.example/count alt=''></noscript><img src=x.jpg alt=words>",
        "<img src=x.jpg alt=words data-url='/about' data-image='3'>",
        "<img class=lazy src=x.jpg alt=words loading=lazy>",
    ],
)
def test_a_picture_next_to_something_else_keeps_its_own_address(html):
    assert pairs(html) == [(f"{A}/dir/x.jpg", "words")]


def test_pictures_of_a_gallery_that_share_one_caption_stay_apart():
    one = "<img class=lazy src=p.png alt=Gallery><noscript><img src=%d.jpg alt=Gallery></noscript>"
    assert [url[-5:] for url, _ in pairs("".join(one % n for n in range(4)))] == [f"{n}.jpg" for n in range(4)]


def test_pictures_of_amp_pages_are_found():
    assert pairs("<html amp><amp-img src=s.jpg srcset='x.jpg 900w, s.jpg 100w' alt=words></amp-img>") == [
        (f"{A}/dir/x.jpg", "words")
    ]


def test_the_largest_source_of_a_picture_element_is_taken():
    html = (
        '<picture><source srcset="m.webp 800w, l.webp 1600w"><source type="image/avif" srcset="xl.avif 3000w">'
        '<img src="s.jpg" alt="words" width="400" height="300"></picture><img src="after.jpg" alt="after">'
    )
    assert [(url, details.width, details.height) for (url, _), details in page(html).pairs.items()] == [
        (f"{A}/dir/l.webp", 1600, 1200),
        (f"{A}/dir/after.jpg", None, None),
    ]


def test_a_figure_gives_its_caption_to_the_pictures_in_it_and_to_no_others():
    html = (
        "<img src=0.jpg><figure><img src=1.jpg alt=one><figcaption>The <b>fir</b>st<br>&amp; last<script>x</script>"
        "</figcaption></figure><img src=2.jpg><figure><figure><img src=3.jpg><figcaption>inner</figcaption></figure>"
        "<figcaption>outer</figcaption><img src=4.jpg></figure>"
    )
    assert [(url[-5:], caption, details.source.value) for (url, caption), details in page(html).pairs.items()] == [
        ("1.jpg", "one", "alt"),
        ("1.jpg", "The first & last", "figcaption"),
        ("3.jpg", "inner", "figcaption"),
        ("4.jpg", "outer", "figcaption"),
    ]


def test_a_figure_that_does_not_end_captions_nothing():
    assert pairs("<figure><img src=1.jpg><figcaption>words</figcaption><p><img src=2.jpg>") == []


def test_og_image_takes_the_title_of_the_page_and_its_own_description():
    html = (
        '<title>Site &amp; page</title><meta property="og:image" content="/o.jpg">'
        '<meta name="OG:image:width" content="1200">'
        '<meta property="og:image:alt" content="What it shows">'
    )
    assert list(page(html).pairs.items()) == [
        ((f"{A}/o.jpg", "Site & page"), (CaptionSource.OG, 1200, None)),
        ((f"{A}/o.jpg", "What it shows"), (CaptionSource.OG, 1200, None)),
    ]
    assert pairs(html + '<meta property="og:title" content="Better">')[0][1] == "Better"


def test_attributes_that_are_escaped_to_the_last_sign_are_read():
    """As Zend's frameworks write them."""
    og = '<title>words</title><meta property="og&#x3A;image" content="&#x2F;o.jpg">'
    assert pairs(og) == [(f"{A}/o.jpg", "words")]
    avif = '<source type="image&#x2F;avif" srcset="x.avif&#x20;900w">'
    assert pairs(f"<picture>{avif}<img src=x.jpg alt=words></picture>") == [(f"{A}/dir/x.jpg", "words")]


def test_the_title_of_a_drawing_is_not_that_of_the_page():
    assert pairs('<svg><title>arrow</title></svg><meta property="og:image" content="/o.jpg">') == []


def test_text_around_a_picture_is_a_caption_only_if_asked_for():
    html = "<div>before</div><p><img src=x.jpg>The old <i>bridge</i></p><div><img src=y.jpg></div><h3>Next block</h3>"
    assert pairs(html) == []
    assert [caption for _, caption in pairs(html, surrounding_text=True)] == ["The old bridge", "Next block"]
    assert {details.source for details in page(html, surrounding_text=True).pairs.values()} == {
        CaptionSource.SURROUNDING
    }


@pytest.mark.parametrize(
    "hidden",
    [
        '<a title="a > b">',
        "<a onclick='if (a > b) go()' href=x>",
        '<img alt="" title="<b>bold</b> > rest">',
        "<script>if (a > b) { go('<p>') }</script>",
        "<SCRIPT type='a>b'>go()</SCRIPT >",
        "<style>p > a { color: red }</style>",
        "<!-- a > b <p> -->",
        "<!-->",
        "<noscript>Please allow <b>scripts</b></noscript>",
        "<textarea>typed</textarea>",
        "</b title='a'>",
        "<script>" + "var much = 1;" * 70 + "</script>",
    ],
)
def test_markup_and_scripts_do_not_leak_into_text(hidden):
    around = f"<p>Old {hidden}<img src=x.jpg>{hidden} bridge"
    for html in (around, around + "</p>", f"<h1>Other</h1>{hidden}{around}<p>next"):
        assert pairs(html, surrounding_text=True)[-1][1] in ("Old bridge", "Old", "bridge")
        assert len(pairs(html, surrounding_text=True)) == 1
    figure = f"<figure><img src=x.jpg><figcaption>Old {hidden} bridge</figcaption></figure>"
    assert [caption for _, caption in pairs(figure)] == ["Old bridge"]


def test_a_page_that_ends_within_a_script_or_a_tag_leaks_neither():
    for rest in ("<script>var a = 1; ", "<a href='x>y", "<style>p { ", "<!-- words"):
        assert [caption for _, caption in pairs(f"<p>Old<img src=x.jpg> bridge{rest}", surrounding_text=True)] == [
            "Old bridge"
        ]


def test_text_is_cut_between_words_where_it_is_out_of_reach():
    words = "é".join(f"wörd{number} " for number in range(900))
    (caption,) = [caption for _, caption in pairs(f"<p>{words}<img src=x.jpg>{words}", surrounding_text=True)]
    assert set(caption.split()[:-1]) <= set(words.split()) and "\ufffd" not in caption


def test_a_caption_of_its_own_comes_before_the_text_around():
    html = "<figure><img src=x.jpg> around <figcaption>own</figcaption></figure>"
    assert [caption for _, caption in pairs(html, surrounding_text=True)] == ["own"]


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<img src=x.jpg alt=''>", "no caption"),
        ("<img src=x.jpg aria-label=words title=words>", "no caption"),
        ("<img alt=words>", "no url"),
        ("<img src='#top' alt=words>", "no url"),
        ("<img src='data:image/gif;base64,R0' alt=words>", "data: uri"),
        ("<img src='javascript:x()' alt=words>", "url is not http"),
        ("<img src='blob:https://a.example/1' alt=words>", "url is not http"),
        ("<img src='http://[::1' alt=words>", "bad url"),
        ("<img src='https://exa mple/x.jpg' alt=words>", "bad url"),
        (f"<img src='{'x' * 3000}.jpg' alt=words>", "url too long"),
        ("<img src=x.jpg alt=words width=1 height=1>", "tracking pixel"),
        ("<img src=x.jpg alt=words height=0>", "tracking pixel"),
        ("<img src=/img/spacer.gif?1 alt=words>", "tracking pixel"),
        ("<img src=https://www.facebook.com/tr?id=1 alt=words>", "tracking pixel"),
        ("<img src=x.jpg alt=words width=32 height=16>", "icon"),
        ("<img src=/favicon-96x96.png alt=words>", "icon"),
        ("<img src=x.SVG?v=1 alt=words>", "vector picture"),
        ("<img src=/i/lazy-placeholder.png alt=words>", "placeholder"),
        ("<img src=/i/loading.gif alt=words>", "placeholder"),
    ],
)
def test_what_is_left_out_is_counted_by_reason(html, reason):
    assert pairs(html) == []
    assert dropped(html) == {reason: 1}


def test_pictures_beyond_the_limit_are_counted():
    html = "".join(f"<img src={number}.jpg alt={number}>" for number in range(10))
    assert len(pairs(html, max_pictures_per_page=4)) == 4
    assert dropped(html, max_pictures_per_page=4) == {"too many pictures on the page": 6}


@pytest.mark.parametrize(
    ("html", "language"),
    [
        ("<html lang=en_GB>", "en-gb"),
        ("<html xml:lang='pt-BR'><meta http-equiv=content-language content=de>", "pt-br"),
        ("<meta http-equiv=Content-Language content='de, en'>", "de"),
        ("<html lang='{{ lang }}'>", None),
        ("", None),
    ],
)
def test_the_language_is_what_the_page_says(html, language):
    assert page(html + "<img src=x.jpg alt=words>").language == language


CC = "https://creativecommons.org/licenses/by/4.0/"


@pytest.mark.parametrize(
    ("html", "licence"),
    [
        (f"<a href='{CC}'>x</a>", CC),
        (f"<a href='{CC}'>x</a><a rel='nofollow license' href='/our-licence'>y</a>", f"{A}/our-licence"),
        ("<link rel=license href=//creativecommons.org/publicdomain/zero/1.0/>",
         "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("<a href='https://creativecommons.org/about'>license</a>", None),
        ("<a href='https://evil.example/?creativecommons.org/licenses/by/4.0/'>x</a>", None),
        ("<a rel=license href='javascript:1'>x</a>", None),
    ],
)  # fmt: skip
def test_the_licence_link_is_that_of_the_page(html, licence):
    assert page(html + "<img src=x.jpg alt=words>").licence_url == licence


def test_a_page_whose_own_address_is_odd_still_gives_absolute_pairs():
    assert pairs("<img src=x.jpg alt=a><img src=https://b.example/y.jpg alt=b>", "dns:a.example") == [
        ("https://b.example/y.jpg", "b")
    ]
    assert PAGE_URL.startswith(A)
