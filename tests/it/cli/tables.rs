use super::*;

#[tokio::test]
async fn tables_are_shown_from_every_side() {
    let (folder, _) = project_with_history().await;
    // Ids differ in length, and with them the widths of columns.
    let ask = |args: &str| {
        let ended = run(folder.path(), args);
        let text = ended.normal(ended.done());
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().filter(|line| !line.starts_with("--")).map(line).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(ask("tables snapshots shop.orders"), @"
    snapshot | committed at | operation | added rows | deleted rows | total rows
    ID | TIME | append | 1 | | 3
    ID | TIME | append | 2 | | 2
    ");
    insta::assert_snapshot!(ask("tables properties shop.orders"), @"
    property | value
    write.delete.mode | merge-on-read
    write.metadata.delete-after-commit.enabled | true
    write.metadata.previous-versions-max | 20
    write.parquet.compression-codec | zstd
    ");
    let shown = ask("tables show shop.orders");
    insta::assert_snapshot!(shown.lines().filter(|line| !line.starts_with("size")).collect::<Vec<_>>().join("\n"), @"
    table shop.orders
    rows 3
    files 2 data, 0 delete
    snapshots 2
    snapshot ID
    last commit TIME
    partition none
    sort none
    format version 2
    uuid UUID
    location file://FOLDER/warehouse/shop/orders
    metadata file://FOLDER/warehouse/shop/orders/metadata/00002-UUID.metadata.json

    id | column | type | required | doc
    1 | id | long | yes |
    2 | qty | int | |
    3 | note | string | |
    ");
    insta::assert_snapshot!(ask("tables orphans shop.orders --older-than 1ms"), @"");

    let files = run(folder.path(), "tables files shop.orders --json").json();
    let rows: Vec<u64> = files.as_array().unwrap().iter().map(|file| file["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows.iter().sum::<u64>(), 3);
    let list = run(folder.path(), "tables --json").json();
    let list = &list.as_array().unwrap()[0];
    assert_eq!((&list["table"], &list["rows"], &list["snapshots"]), (&"shop.orders".into(), &3.into(), &2.into()));
    let snapshots = run(folder.path(), "tables snapshots shop.orders --json").json();
    assert_eq!(snapshots[0]["total_rows"], 3, "the newest comes first");
    assert_eq!(snapshots[1]["summary"]["added-records"], "2");
    for what in ["show", "properties", "orphans"] {
        run(folder.path(), &format!("tables {what} shop.orders --json")).json();
    }
    std::fs::write(folder.path().join("warehouse/shop/orders/data/left-behind.parquet"), "x").unwrap();
    let orphans = run(folder.path(), "tables orphans shop.orders --older-than 1ms --json").json();
    let orphan = orphans[0]["path"].as_str().unwrap();
    assert!(orphan.ends_with("/left-behind.parquet") && orphans.as_array().unwrap().len() == 1, "{orphans}");
    assert_eq!(run(folder.path(), "tables orphans shop.orders --json").json(), serde_json::json!([]), "it is young");
}

#[tokio::test]
async fn a_table_that_is_not_there() {
    let (folder, _) = project_with_history().await;
    insta::assert_snapshot!(run(folder.path(), "tables show shop.ordrs").error(2), @"
    error: there is no table `shop.ordrs`
      hint: did you mean `shop.orders`?
    ");
    insta::assert_snapshot!(run(folder.path(), "tables files nowhere.nothing").error(2), @"
    error: there is no table `nowhere.nothing`
      hint: `icestream tables` lists the tables there are
    ");
    insta::assert_snapshot!(run(folder.path(), "drop shop.orderz --yes").error(2), @"
    error: there is no table `shop.orderz`
      hint: did you mean `shop.orders`?
    ");
    insta::assert_snapshot!(run(folder.path(), "tables show orders").error(2), @"
    error: invalid value 'orders' for '<NS.TABLE>': `orders` is not a table name: write `namespace.table`

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn a_drop_takes_what_it_was_told_to() {
    let files_in = |folder: &TempDir| {
        let of =
            |part: &str| std::fs::read_dir(folder.path().join("warehouse/shop/orders").join(part)).unwrap().count();
        of("data") + of("metadata")
    };
    let (folder, _) = project_with_history().await;
    let before = files_in(&folder);
    insta::assert_snapshot!(run(folder.path(), "drop shop.orders --purge").error(2), @"
    error: table `shop.orders` was not dropped: nobody said yes
      hint: add `--yes` to drop it and delete its files
    ");
    run(folder.path(), "tables show shop.orders").done();
    let dropped = run(folder.path(), "drop shop.orders --yes");
    insta::assert_snapshot!(dropped.done(), @"table `shop.orders` dropped; its files stay where they are");
    assert_eq!(files_in(&folder), before);
    run(folder.path(), "drop shop.orders --yes").error(2);
    let ended = run(folder.path(), "tables");
    assert_eq!((ended.done(), ended.stderr.as_str()), ("", "there are no tables yet\n"));
    assert_eq!(run(folder.path(), "tables --json --quiet").done(), "[]\n");

    let (folder, _) = project_with_history().await;
    assert!(run(folder.path(), "drop shop.orders --yes --purge").done().ends_with(" files deleted\n"));
    assert_eq!(files_in(&folder), 0);
}
