package show

import (
	"io"
	"strings"
	"text/tabwriter"
)

// Width is the number of columns of the terminal that output is made for.
const Width = 80

// gap is the number of spaces between two columns.
const gap = 2

// Column is the head of a table's column. Longer cells lose their middle; 0 sets no limit.
type Column struct {
	Title string
	Max   int
}

// Table writes rows under a head, each cell escaped and cut to its column. A table whose limits are chosen
// well fits into Width.
func Table(w io.Writer, columns []Column, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.Title
	}
	if _, err := io.WriteString(tw, strings.Join(titles, "\t")+"\n"); err != nil {
		return err
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = Text(cell)
			if cells[i] == "" {
				cells[i] = "-"
			}
			if limit := columns[i].Max; limit > 0 {
				cells[i] = Shorten(cells[i], limit)
			}
		}
		if _, err := io.WriteString(tw, strings.Join(cells, "\t")+"\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// Field is one line of a description.
type Field struct{ Name, Value string }

// Fields writes names and values in two columns, each value escaped; those without a value are left out.
func Fields(w io.Writer, fields []Field) error {
	tw := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	for _, f := range fields {
		if f.Value == "" {
			continue
		}
		if _, err := io.WriteString(tw, f.Name+":\t"+Text(f.Value)+"\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}
