package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// currencies are those that orders can be paid in, with the number of their decimals.
var currencies = map[string]int{"CHF": 2, "EUR": 2, "GBP": 2, "JPY": 0, "PLN": 2, "SEK": 2, "USD": 2}

const (
	maxQuantity = 10_000
	maxPrice    = 100_000_000 // in the smallest unit of the currency
)

// order is a row that has passed all checks.
type order struct {
	id, customer, sku string
	quantity          int64
	unitPrice         int64 // in the smallest unit of the currency, as all amounts
	currency, country string
	date              time.Time
}

func (o order) total() int64 { return o.quantity * o.unitPrice }

// parseOrder makes an order of a row. Its errors are such that no retry can help.
func parseOrder(text string) (order, error) {
	switch {
	case len(text) > maxRow:
		return order{}, fmt.Errorf("row is longer than %d bytes", maxRow)
	case !utf8.ValidString(text):
		return order{}, errors.New("row is not UTF-8")
	}
	in := csv.NewReader(strings.NewReader(text))
	in.FieldsPerRecord = strings.Count(header, ",") + 1
	v, err := in.Read()
	if err != nil {
		var malformed *csv.ParseError
		if errors.As(err, &malformed) {
			err = malformed.Err // without the line, which is not that of the file
		}
		return order{}, fmt.Errorf("malformed CSV: %w", err)
	}
	for i := range v {
		v[i] = strings.TrimSpace(v[i])
	}
	o := order{id: v[0], customer: v[1], sku: v[2], currency: v[5], country: v[6]}
	decimals, known := currencies[o.currency]
	switch {
	case o.id == "":
		return o, errors.New("order ID is missing")
	case o.customer == "":
		return o, errors.New("customer is missing")
	case o.sku == "":
		return o, errors.New("SKU is missing")
	case !known:
		return o, fmt.Errorf("currency %q is unknown", shorten(o.currency, 20))
	case len(o.country) != 2 || strings.Trim(o.country, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
		return o, fmt.Errorf("country %q is no code of two letters", shorten(o.country, 20))
	}
	if o.quantity, err = strconv.ParseInt(v[3], 10, 64); err != nil || o.quantity < 1 || o.quantity > maxQuantity {
		return o, fmt.Errorf("quantity %q is not 1 to %d", shorten(v[3], 20), maxQuantity)
	}
	if o.unitPrice, err = parseAmount(v[4], decimals); err != nil {
		return o, fmt.Errorf("unit price %q: %w", shorten(v[4], 20), err)
	}
	if o.date, err = time.Parse(time.DateOnly, v[7]); err != nil {
		return o, fmt.Errorf("date %q does not exist", shorten(v[7], 20))
	}
	return o, nil
}

// parseAmount reads a decimal number without rounding it.
func parseAmount(text string, decimals int) (int64, error) {
	whole, fraction, point := strings.Cut(text, ".")
	digits := whole + fraction
	switch {
	case whole == "" || point && fraction == "" || strings.Trim(digits, "0123456789") != "":
		return 0, errors.New("is no amount")
	case len(fraction) > decimals:
		return 0, fmt.Errorf("has more than %d decimals", decimals)
	}
	n, err := strconv.ParseInt(digits+strings.Repeat("0", decimals-len(fraction)), 10, 64)
	if err != nil || n > maxPrice {
		return 0, errors.New("is too large")
	}
	return n, nil
}

// formatAmount is the reverse of parseAmount, with commas between thousands.
func formatAmount(amount int64, currency string) string {
	unit := int64(math.Pow10(currencies[currency]))
	s := strconv.FormatInt(amount/unit, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if unit > 1 {
		s += fmt.Sprintf(".%0*d", currencies[currency], amount%unit)
	}
	return s
}

// warehouse returns from which warehouse an article is sent: that is the part of the SKU before
// the dash. It is a bug on purpose: a SKU without a dash makes it panic.
func warehouse(sku string) string {
	parts := strings.Split(sku, "-")
	_ = parts[1] // the article
	return parts[0]
}
