//! Makes a number written beside a decimal a decimal: `price = 99.99` finds the rows that cost 99.99.
//!
//! DataFusion takes `99.99` for a double, and brings both sides of a comparison to 15 decimal places, where the double is
//! 99.989999999999995. Reading every such number as a decimal instead is no way out: doubles would then be compared as
//! decimals, which they do not fit into, and a ratio like `1.0 * a / b` would be cut to a few digits. So only the numbers
//! that meet a decimal change, and not in a division.

use arrow::datatypes::{DataType, Decimal128Type, DecimalType};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};

pub(crate) fn with_exact_literals(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        let schema = merge_schema(&plan.inputs());
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let expr = expr.transform_up(|expr| beside_decimals(expr, &schema))?;
            Ok(expr.update_data(|expr| name.restore(expr)))
        })?
        .map_data(LogicalPlan::recompute_schema)
    })
    .data()
}

fn beside_decimals(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let meets = match &expr {
        Expr::BinaryExpr(binary) => binary.op != Operator::Divide,
        Expr::Between(_) | Expr::InList(_) | Expr::Case(_) | Expr::ScalarFunction(_) => true,
        _ => false,
    };
    if !meets {
        return Ok(Transformed::no(expr));
    }
    let mut has_decimal = false;
    expr.apply_children(|child| {
        has_decimal |= matches!(child.get_type(schema), Ok(DataType::Decimal128(..)));
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    })?;
    if !has_decimal {
        return Ok(Transformed::no(expr));
    }
    expr.map_children(|child| {
        Ok(match &child {
            Expr::Literal(ScalarValue::Float64(Some(number)), metadata) => match exact(*number) {
                Some(decimal) => Transformed::yes(Expr::Literal(decimal, metadata.clone())),
                None => Transformed::no(child),
            },
            Expr::Negative(inner) => match inner.as_ref() {
                Expr::Literal(ScalarValue::Float64(Some(number)), metadata) => match exact(-*number) {
                    Some(decimal) => Transformed::yes(Expr::Literal(decimal, metadata.clone())),
                    None => Transformed::no(child),
                },
                _ => Transformed::no(child),
            },
            _ => Transformed::no(child),
        })
    })
}

/// The decimal a person meant who wrote a number that became this double: the shortest text that gives it back.
fn exact(number: f64) -> Option<ScalarValue> {
    let text = format!("{number}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    let digits = value.unsigned_abs().checked_ilog10().unwrap_or(0) as u8 + 1;
    let scale = u8::try_from(fraction.len()).ok()?;
    let precision = digits.max(scale);
    (precision <= Decimal128Type::MAX_PRECISION)
        .then(|| ScalarValue::Decimal128(Some(value), precision, scale.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_double_becomes_the_decimal_that_was_written() {
        let check = |number: f64, expected: Option<(i128, u8, i8)>| {
            let expected =
                expected.map(|(value, precision, scale)| ScalarValue::Decimal128(Some(value), precision, scale));
            assert_eq!(exact(number), expected, "{number}");
        };
        check(99.99, Some((9999, 4, 2)));
        check(-0.05, Some((-5, 2, 2)));
        check(0.0, Some((0, 1, 0)));
        check(1e20, Some((100_000_000_000_000_000_000, 21, 0)));
        check(1e-20, Some((1, 20, 20)));
        check(1e38, None);
        check(1e300, None);
        check(1e-39, None);
        check(f64::NAN, None);
        check(f64::INFINITY, None);
    }
}
