//! `build` with more than what is new.

use icestream::clock::Clock;
use icestream::config::Config;
use icestream::pipeline;
use icestream::table::At;

use super::*;

#[tokio::test]
async fn silver_is_mended_from_bronze_and_what_cannot_be_is_refused() {
    let lines: Vec<String> =
        (1..7).map(|id| format!(r#"{{"op":"c","before":null,"after":{{"id":{id},"status":"paid"}}}}"#)).collect();
    let project = folder_with(&[
        ("icestream.yaml", "name: shop\nsource: { files: { paths: [\"dump\"], topic: shop.public.orders } }\n"),
        ("catalog/orders.yaml", "key: [id]\ncolumns: [{ name: id, type: int }, { name: status, type: string }]\n"),
        ("sql/gold/statuses.sql", "SELECT status, count(*) AS n FROM shop_silver.orders GROUP BY status"),
        ("dump/0.json", &lines.join("\n")),
    ]);
    run(project.path(), "run --drain").done();
    let counted = || {
        let mut command = icestream(project.path(), "query --format csv");
        command
            .arg("SELECT (SELECT count(*) FROM shop_silver.orders) AS s, (SELECT sum(n) FROM shop_gold.statuses) AS g");
        Running::start(command).end().done().lines().nth(1).unwrap().to_string()
    };
    assert_eq!(counted(), "6,6");
    let config = Config::load(project.path(), &Default::default(), &[]).unwrap();
    let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
    let orders = lake.table(&"shop_silver.orders".parse().unwrap()).await.unwrap();
    let view = orders.view(At::Head).unwrap();
    let doomed: Vec<_> = view.files(None).await.unwrap().into_iter().map(|file| (file, (1..4).collect())).collect();
    let deletes = orders.write_deletes(&doomed).await.unwrap();
    orders.change().row_delta(&view, Vec::new(), deletes).commit().await.unwrap();
    run(project.path(), "build").done();
    assert_eq!(counted(), "3,3");
    run(project.path(), "build --from -1h").done();
    assert_eq!(counted(), "6,6");

    insta::assert_snapshot!(run(project.path(), "build --from 2026-01-01 statuses").error(2), @"
    error: `--from` is for silver tables, and `shop_gold.statuses` is a gold table
      hint: a gold table is computed anew by itself when its model or what it reads changes; leave it out
    ");
    insta::assert_snapshot!(run(project.path(), "build --from yesterday").error(2), @"
    error: invalid value 'yesterday' for '--from <TIME>': write `2025-03-01`, `2025-03-01 12:00` or `2025-03-01T12:00:00+01:00`, or `-6h`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run(project.path(), "build --from -1h --full orders").error(2), @"
    error: the argument '--from <TIME>' cannot be used with '--full'

    Usage: icestream build --from <TIME> <TABLE>...

    For more information, try '--help'.
    ");
}
