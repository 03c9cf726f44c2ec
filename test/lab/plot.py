"""plot.py FIGURES.csv: an SVG of a join's time and of the primary's CPU time by the number of secondaries (scale.sh)."""
import csv
import sys

rows = [[float(x) for x in row] for row in list(csv.reader(open(sys.argv[1])))[1:]]
width, height, left, bottom, right, top = 560, 320, 50, 40, 20, 30
most = max(max(r[1:]) for r in rows) * 1.1
widest = max(r[0] for r in rows)


def at(n, seconds):
    return left + (width - left - right) * n / widest, height - bottom - (height - bottom - top) * seconds / most


print('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" font-family="sans-serif" font-size="12">' % (width, height))
print("<title>Seconds by the number of secondaries that join at once</title>")
print("<style>text{fill:#333}line{stroke:#bbb}@media(prefers-color-scheme:dark){text{fill:#ddd}line{stroke:#555}}</style>")
step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200) if most / s <= 7)
for mark in range(0, int(most) + 1, step):
    x, y = at(0, mark)
    print('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%d s</text>' % (left, width - right, y, y, left - 6, y + 4, mark))
for row in rows:
    print('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (at(row[0], 0)[0], height - bottom + 18, row[0]))
print('<text x="%d" y="%d" text-anchor="middle">secondaries that join at once</text>' % ((left + width) // 2, height - 6))
for column, (colour, name) in enumerate((("#0a6", "the join"), ("#c50", "the primary\'s CPU")), 1):
    points = [at(row[0], row[column]) for row in rows]
    print('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (colour, " ".join("%.1f,%.1f" % p for p in points)))
    for (x, y), row in zip(points, rows):
        print('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="middle">%.1f</text>' % (x, y, colour, x, y - 7, row[column]))
    print('<text x="%d" y="18" style="fill:%s">%s</text>' % (left + 10 + 120 * (column - 1), colour, name))
print("</svg>")
